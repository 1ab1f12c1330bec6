"""The front door: `from trunkline import LLM, SamplingParams`, and the `trunkline` command.

Names are looked up when they are first used, so that importing this, and every command, costs nothing of torch or Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

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


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'trunkline' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
