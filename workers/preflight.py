"""What can be said about a model before anything is started. Called by `LLM` and by `trunkline serve`; torch-free."""

from __future__ import annotations

from protocol.model_source import ModelSource
from workers.engine_config import EngineConfig
from workers.model.families.registry import find_family
from workers.model.hf_config import read_config
from workers.model.weight_layout import check_divides


def check_model(config: EngineConfig, source: ModelSource) -> None:
    """Raises UnsupportedModel for a family that we do not know, or heads that its ranks cannot share."""
    hf_config = read_config(source.directory)
    check_divides(find_family(hf_config).spec(hf_config), config.tensor_parallel_size)
