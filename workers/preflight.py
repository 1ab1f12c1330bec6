"""What can be said about a model before anything is started. Called by `LLM` and by `trunkline serve`; torch-free."""

from __future__ import annotations

from protocol.model_source import ModelSource
from workers.engine_config import EngineConfig
from workers.model.families.registry import find_family
from workers.model.hf_config import read_config
from workers.model.model_spec import ModelSpec
from workers.model.weights.weight_layout import check_divides


def check_model(config: EngineConfig, source: ModelSource) -> ModelSpec:
    """What the model is. Raises UnsupportedModel: for an unknown family, or heads that its ranks cannot share."""
    hf_config = read_config(source.directory)
    spec = find_family(hf_config).spec(hf_config)
    check_divides(spec, config.tensor_parallel_size)
    return spec
