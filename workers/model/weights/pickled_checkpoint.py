"""PyTorch's pickled files (`pytorch_model.bin`), as far as they hold weights alone. Opened by `checkpoint.py`.

torch's restricted unpickler reads them: it knows tensors and plain containers, and runs no code that a file names.
"""

from __future__ import annotations

import ctypes
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from protocol.errors import UnsupportedModel
from protocol.model_files import WeightFiles
from workers.model.weights.stored_tensors import (
    StoredTensor,
    cut_part,
    match_tensors,
    place_tensors,
    unreadable,
)
from workers.model.weights.weight_piece import Piece
from workers.shard import Shard

_ZIP = b"PK\x03\x04"  # what torch has written since 1.6; the older form cannot be mapped
_MAX_KEPT_BYTES = 32 << 20  # freed, and not yet returned to the system
_NAMED_CODE = re.compile(r"GLOBAL (\S+)")


class PickledCheckpoint:
    """One file or several. Zipped ones stay mapped until `close`, so that only what is read takes memory. One of the
    older form is read whole when its first tensor is asked for, and each of its tensors is freed after its last read.
    """

    def __init__(self, files: WeightFiles) -> None:
        self._directory = files.paths[0].parent
        self._files = {path: _open(path) for path in files.paths}
        contents = {path: file.stored for path, file in self._files.items()}
        self._placed = place_tensors(files, contents)
        self._names: dict[str, str] = {}  # a piece's to the stored tensor's
        self._reads_left: Counter[str] = Counter()  # of each stored tensor

    def check(self, pieces: Iterable[Piece], ignored: tuple[str, ...], prefix: str = "") -> None:
        needed = list(pieces)
        stored = {name: self._files[path].stored[name] for name, path in self._placed.items()}
        self._names = match_tensors(needed, stored, prefix=prefix, ignored=ignored, source=self._directory)
        self._reads_left = Counter(self._names[piece.name] for piece in needed)
        for path, file in self._files.items():
            file.keep({name for name in self._reads_left if self._placed[name] == path})

    def read(self, piece: Piece, shard: Shard) -> Tensor:
        name = self._names[piece.name]
        file = self._files[self._placed[name]]
        part = cut_part(file.tensor(name), piece, shard)
        self._reads_left[name] -= 1
        if self._reads_left[name] <= 0:
            file.forget(name)
        return part

    def scales(self, piece: Piece) -> Tensor | None:
        """Such files are older than fp8."""
        return None

    def find(self, name: str) -> Tensor | None:
        """As are those that have more than weights."""
        return None

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


class _MappedFile:
    """Its tensors are views of the file: they take memory only where they are read, and that is the system's cache."""

    def __init__(self, path: Path) -> None:
        self._tensors = _load(path, mmap=True)
        self.stored = _describe(self._tensors)

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]

    def keep(self, names: set[str]) -> None:
        """All cost the same: nothing."""

    def forget(self, name: str) -> None:
        """Nothing to be gained."""

    def close(self) -> None:
        self._tensors.clear()


class _LegacyFile:
    """Its tensors' names and shapes, and from the first look at one to the last the tensors themselves."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tensors: dict[str, Tensor] = {}
        self._freed_bytes = 0
        with torch.serialization.skip_data():
            self.stored = _describe(_load(path, device="meta"))
        self._wanted = set(self.stored)

    def tensor(self, name: str) -> Tensor:
        if name not in self._tensors:
            loaded = _load(self._path)
            self._tensors = {each: loaded[each] for each in self._wanted | {name}}
        return self._tensors[name]

    def keep(self, names: set[str]) -> None:
        self._wanted = names

    def forget(self, name: str) -> None:
        self._wanted.discard(name)
        tensor = self._tensors.pop(name, None)
        self._freed_bytes += 0 if tensor is None else tensor.nbytes
        if self._freed_bytes > _MAX_KEPT_BYTES:
            self._freed_bytes = 0
            _return_freed_memory()

    def close(self) -> None:
        self._tensors.clear()
        _return_freed_memory()


def _open(path: Path) -> _MappedFile | _LegacyFile:
    try:
        with path.open("rb") as file:
            zipped = file.read(len(_ZIP)) == _ZIP
    except OSError as error:
        raise UnsupportedModel(f"{path} cannot be opened: {error}") from error
    return _MappedFile(path) if zipped else _LegacyFile(path)


def _load(path: Path, *, mmap: bool = False, device: str = "cpu") -> dict[str, Tensor]:
    """Raises UnsupportedModel unless the file is a flat table of dense tensors."""
    try:
        loaded = torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        named = _NAMED_CODE.search(str(error))
        if named is None:
            raise unreadable(path, "PyTorch weights", "it does not unpickle") from error
        raise UnsupportedModel(
            f"{path} holds more than weights: reading it would run {named[1]}, which is refused."
            " Convert it to safetensors where you trust it"
        ) from error
    except Exception as error:  # the unpickler meets damaged bytes with whatever they lead to
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise unreadable(path, "PyTorch weights", reason) from error
    return _checked(loaded, path)


def _return_freed_memory() -> None:
    """malloc keeps what such tensors leave behind, and the weights made of them seldom fit there."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


def _checked(loaded: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping):
        raise UnsupportedModel(f"{path} holds a {type(loaded).__name__}, not a table of tensors by name")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            raise UnsupportedModel(
                f"{path} holds {name!r}, which is not a dense tensor: only a table of them is read"
            )
    return {name: tensor.detach() for name, tensor in loaded.items()}


def _describe(tensors: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in tensors.items()
    }
