"""Where a model's tensors come from: safetensors files, read part by part, or seeded noise for benchmarks.

Called by `weights.py`. No pickled checkpoint is ever opened.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from protocol.errors import ModelNotFound, UnsupportedModel
from workers.model.weight_layout import Piece
from workers.shard import Shard

_INDEX = "model.safetensors.index.json"
_MAX_NAMED = 5  # tensors in an error
_DUMMY_SCALE = 0.02


class Checkpoint(Protocol):
    def check(self, pieces: Iterable[Piece], ignored: tuple[str, ...]) -> None:
        """Raise UnsupportedModel naming what is missing, misshapen or left over."""
        ...

    def read(self, piece: Piece, shard: Shard) -> Tensor:
        """This rank's part, in the checkpoint's own dtype."""
        ...

    def close(self) -> None: ...


class SafetensorsCheckpoint:
    """One file or several with an index. Files stay mapped until `close`; only what is read takes memory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self._tensors: dict[str, Any] = {}  # name to its lazy slice
        try:
            for path in _weight_files(directory):
                self._open(path)
        except (SafetensorError, OSError) as error:
            self.close()
            raise UnsupportedModel(f"{path} is not a readable safetensors file: {error}") from error

    def check(self, pieces: Iterable[Piece], ignored: tuple[str, ...]) -> None:
        expected = {piece.name: piece.shape for piece in pieces}
        shapes = {name: tuple(tensor.get_shape()) for name, tensor in self._tensors.items()}
        problems = [
            *(f"{name} is missing" for name in expected if name not in shapes),
            *(
                f"{name} has shape {list(shapes[name])} where {list(shape)} is expected"
                for name, shape in expected.items()
                if shapes.get(name, shape) != shape
            ),
            *(
                f"{name} is not part of this architecture"
                for name in shapes
                if name not in expected and not name.endswith(ignored)
            ),
        ]
        if problems:
            more = f"; and {len(problems) - _MAX_NAMED} more" if len(problems) > _MAX_NAMED else ""
            raise UnsupportedModel(
                f"the weights in {self._directory} do not fit its config.json:"
                f" {'; '.join(problems[:_MAX_NAMED])}{more}"
            )

    def read(self, piece: Piece, shard: Shard) -> Tensor:
        tensor = self._tensors[piece.name]
        if piece.axis is None:
            whole: Tensor = tensor[:]
            return whole
        before = (slice(None),) * piece.axis
        part: Tensor = tensor[(*before, piece.part(shard))]
        return part

    def close(self) -> None:
        self._tensors.clear()
        self._stack.close()

    def _open(self, path: Path) -> None:
        file = self._stack.enter_context(safe_open(path, framework="pt"))
        for name in file.keys():  # noqa: SIM118  (not a dict: it has no iterator)
            self._tensors[name] = file.get_slice(name)


class DummyCheckpoint:
    """Noise that depends on seed and name alone, so that every rank cuts its part from the same tensor."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def check(self, pieces: Iterable[Piece], ignored: tuple[str, ...]) -> None:
        """Whatever is asked for exists."""

    def read(self, piece: Piece, shard: Shard) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed ^ zlib.crc32(piece.name.encode()))
        whole = torch.randn(piece.shape, generator=generator).mul_(_DUMMY_SCALE).add_(piece.mean)
        if piece.axis is None:
            return whole
        part = piece.part(shard)
        return whole.narrow(piece.axis, part.start, part.stop - part.start)

    def close(self) -> None:
        """Nothing is held."""


def open_checkpoint(directory: Path, load_format: str, seed: int) -> Checkpoint:
    return DummyCheckpoint(seed) if load_format == "dummy" else SafetensorsCheckpoint(directory)


def _weight_files(directory: Path) -> list[Path]:
    index = directory / _INDEX
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return [directory / name for name in names]
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ModelNotFound(f"{directory} holds no .safetensors file, and no other format is loaded")
    return files
