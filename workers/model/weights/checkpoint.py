"""Where a model's tensors come from, and which of the three kinds of checkpoint a directory is.

Called by the runners, read by `load_weights.py`. Safetensors go before pickled files where there are both.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from protocol.model_files import WeightFormat, require_weights
from workers.model.weights.dummy_checkpoint import DummyCheckpoint
from workers.model.weights.pickled_checkpoint import PickledCheckpoint
from workers.model.weights.safetensors_checkpoint import SafetensorsCheckpoint
from workers.model.weights.weight_piece import Piece
from workers.shard import Shard


class Checkpoint(Protocol):
    def check(self, pieces: Iterable[Piece], ignored: tuple[str, ...], prefix: str = "") -> None:
        """Called once, before any `read`. Raises UnsupportedModel naming what is missing, misshapen or left over.

        A checkpoint all of whose names lack `prefix` is read as if they had it.
        """
        ...

    def read(self, piece: Piece, shard: Shard) -> Tensor:
        """This rank's part, in the checkpoint's own dtype. It may be a view of a file: to be copied, never kept."""
        ...

    def scales(self, piece: Piece) -> Tensor | None:
        """Of a matrix in fp8, whole: what its numbers are multiplied with. None: its numbers stand for themselves."""
        ...

    def find(self, name: str) -> Tensor | None:
        """A tensor, whole, that no piece is, under a name as pieces have them. None: there is none."""
        ...

    def close(self) -> None: ...


def open_checkpoint(
    directory: Path, load_format: str, seed: int, device: torch.device | str = "cpu"
) -> Checkpoint:
    """`device`: where noise is made.

    Raises ModelNotFound where there are no weights, UnsupportedModel where they cannot be read.
    """
    if load_format == "dummy":
        return DummyCheckpoint(seed, device)
    wanted = (WeightFormat.SAFETENSORS,) if load_format == "safetensors" else tuple(WeightFormat)
    files = require_weights(directory, wanted)
    if files.format is WeightFormat.PICKLE:
        return PickledCheckpoint(files)
    return SafetensorsCheckpoint(files)
