"""Seeded noise in place of weights, for benchmarks. Opened by `checkpoint.py`; needs no file."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch
from torch import Tensor

from workers.model.weights.stored_tensors import cut_part
from workers.model.weights.weight_piece import Piece
from workers.shard import Shard

_SCALE = 0.02


class DummyCheckpoint:
    """Noise that depends on seed, name and device alone, so that every rank cuts its part from the same tensor."""

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self._seed = seed
        self._device = device  # that makes it: a GPU takes seconds where a CPU takes minutes

    def check(self, pieces: Iterable[Piece], ignored: tuple[str, ...], prefix: str = "") -> None:
        """Whatever is asked for exists."""

    def read(self, piece: Piece, shard: Shard) -> Tensor:
        generator = torch.Generator(self._device).manual_seed(self._seed ^ zlib.crc32(piece.name.encode()))
        whole = (
            torch.randn(piece.shape, generator=generator, device=self._device).mul_(_SCALE).add_(piece.mean)
        )
        return cut_part(whole, piece, shard)

    def scales(self, piece: Piece) -> Tensor | None:
        """Noise is no fp8."""
        return None

    def find(self, name: str) -> Tensor | None:
        """Only what every model has exists."""
        return None

    def close(self) -> None:
        """Nothing is held."""
