"""What a checkpoint's files hold against what a model needs, whatever the format. Called by the checkpoints.

Knows names, shapes and dtypes; the values only where a rank's part is cut out of a tensor that somebody opened.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from protocol.errors import UnsupportedModel
from protocol.model_files import WeightFiles
from workers.model.weights.weight_piece import Piece
from workers.shard import Shard

_MAX_NAMED = 5  # tensors in an error
_DTYPES = ("float64", "float32", "float16", "bfloat16")
_FP8 = "float8_e4m3fn"
_SCALES = ("weight_scale", "weight_scale_inv")  # either multiplies what is stored
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    shape: tuple[int, ...]
    dtype: str  # as torch names it


def place_tensors(files: WeightFiles, contents: Mapping[Path, Collection[str]]) -> dict[str, Path]:
    """Each tensor's file, the index's choice first. Raises UnsupportedModel where the index or two files disagree."""
    placed: dict[str, Path] = {}
    paths = {path.name: path for path in files.paths}
    for name, file in files.placed.items():
        path = paths[file]
        if name not in contents[path]:
            raise UnsupportedModel(
                f"{path} lacks {name}, which {path.parent / files.format.index} places there"
            )
        placed[name] = path
    for path, names in contents.items():
        for name in names:
            if placed.setdefault(name, path) != path and name not in files.placed:
                raise UnsupportedModel(
                    f"{name} is in {placed[name]} and in {path}: only one of them can be meant"
                )
    return placed


def match_tensors(
    pieces: Iterable[Piece],
    stored: Mapping[str, StoredTensor],
    *,
    prefix: str,
    ignored: tuple[str, ...],
    source: Path,
) -> dict[str, str]:
    """Each piece's name to the stored tensor's, which lacks `prefix` where all of them do.

    Raises UnsupportedModel naming what is missing, misshapen, of a dtype that is no plain float's, or left over. A
    matrix may be fp8 where its scales are there.
    """
    shapes = {piece.name: piece.shape for piece in pieces}
    names = _stored_names(shapes, stored, prefix)
    needed = {names[name]: shape for name, shape in shapes.items()}
    problems = [
        *(f"{name} is missing" for name in needed if name not in stored),
        *(
            f"{name} has shape {list(stored[name].shape)} where {list(shape)} is expected"
            for name, shape in needed.items()
            if name in stored and stored[name].shape != shape
        ),
        *(
            f"{name} is of dtype {stored[name].dtype}, {_remark(stored[name])}"
            for name in needed
            if name in stored and stored[name].dtype not in _DTYPES and not scale_name(name, stored)
        ),
        *(
            f"{name} is not part of this architecture"
            for name in stored
            if name not in needed and not name.endswith(ignored)
        ),
    ]
    if problems:
        more = f"; and {len(problems) - _MAX_NAMED} more" if len(problems) > _MAX_NAMED else ""
        raise UnsupportedModel(
            f"the weights in {source} do not fit its config.json: {'; '.join(problems[:_MAX_NAMED])}{more}"
        )
    return names


def scale_name(name: str, stored: Mapping[str, StoredTensor]) -> str | None:
    """The scales of a matrix in fp8. None: it is no such matrix, or has none."""
    if stored[name].dtype != _FP8 or len(stored[name].shape) != 2:
        return None
    names = (name.removesuffix("weight") + ending for ending in _SCALES)
    return next((each for each in names if each in stored), None)


def cut_part(
    tensor: Any, piece: Piece, shard: Shard
) -> Tensor:  # tensor: a torch tensor or a lazy slice of a file
    """This rank's part as `Piece` describes it. A view of `tensor` unless it joins several stretches."""
    if piece.axis is None:
        part: Tensor = tensor[:]
    else:
        before = (slice(None),) * piece.axis
        stretches = [tensor[(*before, stretch)] for stretch in piece.parts(shard)]
        part = stretches[0] if len(stretches) == 1 else torch.cat(stretches, piece.axis)
    return part.t() if piece.transposed else part


def unreadable(path: Path, kind: str, reason: object) -> UnsupportedModel:
    """What is said of a file that is not what its name promises."""
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            return UnsupportedModel(
                f"{path} is a git-lfs pointer and not the weights: run `git lfs pull` there"
            )
    return UnsupportedModel(f"{path} is not a readable {kind} file: {reason}")


def _remark(tensor: StoredTensor) -> str:
    """On a dtype that cannot be."""
    if tensor.dtype == _FP8 and len(tensor.shape) == 2:
        return f"and has no scales: its {' or '.join(_SCALES)} is missing"
    return f"which is none of {', '.join(_DTYPES)}"


def _stored_names(names: Iterable[str], stored: Mapping[str, StoredTensor], prefix: str) -> dict[str, str]:
    """A model's body that was saved without its head lacks the body's name before every tensor."""
    same = {name: name for name in names}
    bare = {name: name.removeprefix(prefix) for name in same}
    changed = [name for name in same if bare[name] != name]
    holds_bare = any(bare[name] in stored for name in changed)
    return bare if holds_bare and not any(name in stored for name in changed) else same
