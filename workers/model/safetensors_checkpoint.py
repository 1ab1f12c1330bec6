"""Safetensors files, read part by part. Opened by `checkpoint.py`."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from protocol.model_files import WeightFiles
from workers.model.stored_tensors import StoredTensor, cut_part, match_tensors, place_tensors, unreadable
from workers.model.weight_piece import Piece
from workers.shard import Shard

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class SafetensorsCheckpoint:
    """One file or several. They stay mapped until `close`; only what is read takes memory."""

    def __init__(self, files: WeightFiles) -> None:
        self._directory = files.paths[0].parent
        self._stack = ExitStack()
        self._names: dict[str, str] = {}  # a piece's to the stored tensor's
        try:
            opened = {path: self._open(path) for path in files.paths}
            placed = place_tensors(files, opened)
            self._tensors = {name: opened[path][name] for name, path in placed.items()}
        except BaseException:
            self._stack.close()
            raise

    def check(self, pieces: Iterable[Piece], ignored: tuple[str, ...], prefix: str = "") -> None:
        stored = {name: _describe(tensor) for name, tensor in self._tensors.items()}
        self._names = match_tensors(pieces, stored, prefix=prefix, ignored=ignored, source=self._directory)

    def read(self, piece: Piece, shard: Shard) -> Tensor:
        return cut_part(self._tensors[self._names[piece.name]], piece, shard)

    def close(self) -> None:
        self._tensors.clear()
        self._stack.close()

    def _open(self, path: Path) -> dict[str, Any]:
        """Its tensors' names to their lazy slices."""
        try:
            file = self._stack.enter_context(safe_open(path, framework="pt"))
            return {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        except (SafetensorError, OSError) as error:
            raise unreadable(path, "safetensors", error) from error


def _describe(tensor: Any) -> StoredTensor:
    dtype: str = tensor.get_dtype()
    return StoredTensor(tuple(tensor.get_shape()), _DTYPES.get(dtype, dtype))
