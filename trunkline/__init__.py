"""The front door: `from trunkline import LLM, SamplingParams`. Loads nothing heavy until it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kernels import __version__

if TYPE_CHECKING:
    from protocol.sampling import SamplingParams
    from trunkline.llm import LLM
    from trunkline.outputs import CompletionOutput, RequestOutput

__all__ = ["LLM", "CompletionOutput", "RequestOutput", "SamplingParams", "__version__"]

_HOMES = {
    "LLM": "trunkline.llm",
    "SamplingParams": "protocol.sampling",
    "RequestOutput": "trunkline.outputs",
    "CompletionOutput": "trunkline.outputs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trunkline' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
