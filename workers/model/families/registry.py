"""Which family an architecture's name in config.json belongs to. A new family is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from workers.model.families import llama
from workers.model.hf_config import HfConfig
from workers.model.model_spec import ModelSpec, WeightNames


@dataclass(frozen=True, slots=True)
class Family:
    spec: Callable[[HfConfig], ModelSpec]
    names: WeightNames


FAMILIES = {"LlamaForCausalLM": Family(llama.spec, llama.NAMES)}


def find_family(config: HfConfig) -> Family:
    """Raises UnsupportedModel with the architectures that are known."""
    family = FAMILIES.get(config.architecture)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise config.unsupported(f"its architecture is {config.architecture}; known are {known}")
    if config.section("quantization_config"):
        raise config.unsupported(
            "its weights are quantized; use a checkpoint in bfloat16, float16 or float32"
        )
    return family
