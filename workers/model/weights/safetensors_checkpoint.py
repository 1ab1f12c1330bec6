"""Safetensors files, read part by part. Opened by `checkpoint.py`."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from protocol.model_files import WeightFiles
from workers.model.weights.stored_tensors import (
    StoredTensor,
    cut_part,
    match_tensors,
    place_tensors,
    scale_name,
    unreadable,
)
from workers.model.weights.weight_piece import Piece
from workers.shard import Shard

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
}


class SafetensorsCheckpoint:
    """One file or several. They stay mapped until `close`; only what is read takes memory."""

    def __init__(self, files: WeightFiles) -> None:
        self._directory = files.paths[0].parent
        self._stack = ExitStack()
        self._names: dict[str, str] = {}  # a piece's to the stored tensor's
        self._scales: dict[str, str] = {}  # a piece's to its scales', where it is fp8
        self._lacking = ""  # of pieces' names, in all that are stored
        try:
            opened = {path: self._open(path) for path in files.paths}
            placed = place_tensors(files, {path: dict.fromkeys(file.keys()) for path, file in opened.items()})
            self._files = {name: opened[path] for name, path in placed.items()}
        except BaseException:
            self._stack.close()
            raise

    def check(self, pieces: Iterable[Piece], ignored: tuple[str, ...], prefix: str = "") -> None:
        stored = {name: _describe(file.get_slice(name)) for name, file in self._files.items()}
        self._names = match_tensors(pieces, stored, prefix=prefix, ignored=ignored, source=self._directory)
        found = {name: scale_name(own, stored) for name, own in self._names.items()}
        self._scales = {name: scales for name, scales in found.items() if scales is not None}
        self._lacking = "" if all(name == own for name, own in self._names.items()) else prefix

    def read(self, piece: Piece, shard: Shard) -> Tensor:
        name = self._names[piece.name]
        return cut_part(self._files[name].get_slice(name), piece, shard)

    def scales(self, piece: Piece) -> Tensor | None:
        name = self._scales.get(piece.name)
        return None if name is None else self._whole(name)

    def find(self, name: str) -> Tensor | None:
        own = name.removeprefix(self._lacking)
        return self._whole(own) if own in self._files else None

    def close(self) -> None:
        self._files.clear()
        self._stack.close()

    def _whole(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def _open(self, path: Path) -> Any:
        try:
            return self._stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise unreadable(path, "safetensors", error) from error


def _describe(tensor: Any) -> StoredTensor:
    dtype: str = tensor.get_dtype()
    return StoredTensor(tuple(tensor.get_shape()), _DTYPES.get(dtype, dtype))
