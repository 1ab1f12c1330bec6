"""Which files of a model's directory hold its weights: one answer for whoever fetches, digests or loads them.

Used by `model_source.py` and by the workers' checkpoints. Knows names and indexes, and opens no weight file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from protocol.errors import ModelNotFound, UnsupportedModel

_OTHER_LAYOUTS = (
    "consolidated",
    "adapter_",
)  # safetensors files beside the weights, under other names of tensors


class WeightFormat(Enum):
    """In the order of preference. The value is the name of a file that holds all weights."""

    SAFETENSORS = "model.safetensors"
    PICKLE = "pytorch_model.bin"

    @property
    def index(self) -> str:
        """The name of the file that says which tensor is in which file."""
        return f"{self.value}.index.json"


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """`placed` is what an index says: a tensor's name to its file's. Empty: each file says itself what it holds."""

    format: WeightFormat
    paths: tuple[Path, ...]
    placed: Mapping[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> tuple[Path, ...]:
        """Those that an index names and that are not there."""
        return tuple(path for path in self.paths if not path.is_file())


def find_weights(
    directory: Path, formats: tuple[WeightFormat, ...] = tuple(WeightFormat)
) -> WeightFiles | None:
    """The weights in the first of `formats` that is there. Raises UnsupportedModel for an index that is none."""
    for weight_format in formats:
        if (whole := directory / weight_format.value).is_file():
            return WeightFiles(weight_format, (whole,))
        if (index := directory / weight_format.index).is_file():
            placed = _read_index(index)
            paths = tuple(directory / name for name in sorted(set(placed.values())))
            return WeightFiles(weight_format, paths, placed)
        if weight_format is WeightFormat.SAFETENSORS and (paths := _otherwise_named(directory)):
            return WeightFiles(weight_format, paths)
    return None


def require_weights(directory: Path, formats: tuple[WeightFormat, ...] = tuple(WeightFormat)) -> WeightFiles:
    """Raises ModelNotFound naming what was looked for, or the file that an index names and that is not there."""
    found = find_weights(directory, formats)
    if found is None:
        wanted = " or ".join(weight_format.value for weight_format in formats)
        raise ModelNotFound(
            f"{directory} holds no weights: a {wanted} is needed, whole or in parts with an index"
        )
    if found.missing:
        path = found.missing[0]
        raise ModelNotFound(
            f"{directory / found.format.index} names {path.name}, which is not there: fetch {path}"
        )
    return found


def _otherwise_named(directory: Path) -> tuple[Path, ...]:
    """Safetensors hold nothing but tensors; a .bin may be an optimizer's state or a training run's arguments."""
    return tuple(
        path
        for path in sorted(directory.glob("*.safetensors"))
        if path.is_file() and not path.name.startswith(_OTHER_LAYOUTS)
    )


def _read_index(path: Path) -> dict[str, str]:
    try:
        placed = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnsupportedModel(f"{path} is not an index of weights: {error!r}") from error
    if not isinstance(placed, dict) or not placed:
        raise UnsupportedModel(f"{path} is not an index of weights: its weight_map names no tensor")
    for tensor, name in placed.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise UnsupportedModel(f"{path} places {tensor} in {name!r}, which is no file's name")
    return placed
