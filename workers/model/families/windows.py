"""Which layers see only the newest tokens, as config.json says it: by the layer, or by a rule of the family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from workers.model.hf_config import HfConfig
from workers.model.model_spec import LayerSpec

SLIDING = "sliding_attention"
FULL = "full_attention"


def layer_kinds(config: HfConfig, num_layers: int, is_sliding: Callable[[int], bool]) -> tuple[str, ...]:
    """SLIDING or FULL for each layer: its `layer_types`, and where there are none what the family's rule says."""
    kinds = config.texts("layer_types")
    if not kinds:
        return tuple(SLIDING if is_sliding(index) else FULL for index in range(num_layers))
    if len(kinds) != num_layers or not {SLIDING, FULL}.issuperset(kinds):
        raise config.unsupported(
            f"layer_types must name {SLIDING} or {FULL} for each of its {num_layers} layers, not {list(kinds)}"
        )
    return kinds


def with_window(layer: LayerSpec, kind: str, config: HfConfig) -> LayerSpec:
    return replace(layer, window=config.integer("sliding_window")) if kind == SLIDING else layer
