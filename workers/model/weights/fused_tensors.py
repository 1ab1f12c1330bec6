"""A checkpoint's tensors put together as one rank needs them: its parts, several one below the other, in the model's
dtype or in fp8. Made by `load_weights.py`, which knows what they are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.quantize_fp8 import Fp8Weight
from workers.model.weights.checkpoint import Checkpoint
from workers.model.weights.fp8_format import Fp8Format
from workers.model.weights.fp8_pieces import Fp8Piece, read_fp8_piece, read_kv_scales
from workers.model.weights.own_pages import empty_pages
from workers.model.weights.weight_piece import Piece
from workers.shard import Shard

Progress = Callable[[int, int], None]  # tensors loaded, tensors in all


@dataclass(frozen=True, slots=True)
class Fp8Use:
    """What becomes of a checkpoint's numbers in fp8, and of its scales."""

    stored: Fp8Format | None = None  # None: all is 16 or 32 bits
    weights: torch.dtype | None = None  # in which layers multiply; None: what is fp8 is made wide
    kv: torch.dtype | None = None  # of a pool in fp8
    num_kv_heads: int = 0  # of the whole model


class FusedTensors:
    """Reads each piece once, straight to its place on the device."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        shard: Shard,
        dtype: torch.dtype,
        device: torch.device,
        fp8: Fp8Use,
        num_pieces: int,
        on_progress: Progress | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._shard = shard
        self._dtype = dtype
        self._device = device
        self._fp8 = fp8
        self._num_pieces = num_pieces
        self._num_loaded = 0
        self._on_progress = on_progress

    def ones(self, size: int) -> Tensor:  # [size]
        return torch.ones(size, dtype=self._dtype, device=self._device)

    def one(self, piece: Piece, plus: float = 0.0) -> Tensor:
        """`plus`: added before it is rounded to the model's dtype."""
        if not plus:
            return self.fused((piece,))
        return self._read(piece).float().add(plus).to(self._device, self._dtype)

    def fused(self, pieces: tuple[Piece, ...]) -> Tensor:
        """Several tensors one below the other."""
        return self.filled(pieces, self._num_rows(pieces))

    def filled(self, pieces: tuple[Piece, ...], num_rows: int) -> Tensor:
        """The same; what they leave free of so many rows is zero."""
        fused = self._empty((num_rows, *pieces[0].part_shape(self._shard)[1:]), self._dtype)
        for piece, part in self._places(pieces):
            stored = self._stored(piece)
            if isinstance(stored, Fp8Piece):
                stored.widen(fused[part])
            else:
                fused[part].copy_(stored)
        fused[self._num_rows(pieces) :].zero_()
        return fused

    def are_fp8(self, pieces: Iterable[Piece]) -> bool:
        """In the checkpoint, and to be multiplied as such: all that is fused to one weight, or none of it."""
        return self._fp8.weights is not None and all(
            self._checkpoint.scales(piece) is not None for piece in pieces
        )

    def fused_fp8(self, pieces: tuple[Piece, ...]) -> Fp8Weight:
        """`fused` of matrices that `are_fp8`."""
        assert self._fp8.weights is not None, "a weight in fp8 is for a device that multiplies it"
        num_rows = self._num_rows(pieces)
        numbers = self._empty((num_rows, *pieces[0].part_shape(self._shard)[1:]), self._fp8.weights)
        fused = Fp8Weight(numbers, self._empty((num_rows, 1), torch.float32))
        for piece, part in self._places(pieces):
            stored = self._stored(piece)
            assert isinstance(stored, Fp8Piece), "all of them are fp8"
            stored.put(Fp8Weight(fused.numbers[part], fused.scales[part]))
        return fused

    def kv_scales(self, query: Piece) -> Tensor | None:  # [2, KV heads of this rank] fp32
        """Of the attention whose projection of queries is `query`. None: the pool is not fp8, or there are none."""
        if self._fp8.kv is None:
            return None
        attention, _, _ = query.name.rsplit(".", 2)
        heads = self._fp8.num_kv_heads
        scales = read_kv_scales(self._checkpoint, attention, heads, self._shard, self._fp8.kv)
        return None if scales is None else scales.to(self._device)

    def _num_rows(self, pieces: tuple[Piece, ...]) -> int:
        return sum(piece.part_shape(self._shard)[0] for piece in pieces)

    def _places(self, pieces: tuple[Piece, ...]) -> Iterator[tuple[Piece, slice]]:
        """Each piece and its rows of what they are fused to."""
        end = 0
        for piece in pieces:
            start, end = end, end + piece.part_shape(self._shard)[0]
            yield piece, slice(start, end)

    def _stored(self, piece: Piece) -> Tensor | Fp8Piece:
        part, scales = self._read(piece), self._checkpoint.scales(piece)
        if scales is None:
            return part
        block = None if self._fp8.stored is None else self._fp8.stored.block
        return read_fp8_piece(piece, self._shard, part, scales, block)

    def _read(self, piece: Piece) -> Tensor:
        """What safetensors hands out may be a view of the file."""
        tensor = self._checkpoint.read(piece, self._shard)
        self._num_loaded += 1
        if self._on_progress is not None:
            self._on_progress(self._num_loaded, self._num_pieces)
        return tensor

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self._device.type == "cpu":
            return empty_pages(shape, dtype)
        return torch.empty(shape, dtype=dtype, device=self._device)
