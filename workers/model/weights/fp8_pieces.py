"""Weights in fp8 as a checkpoint stores them, and its scales of keys and values. Read by `fused_tensors.py`.

    weight[n, k] = numbers[n, k] · scales[n // rows, k // columns]      a scale for all, for a channel or for a block

Numbers whose row has one scale are used bit for bit, as our products have a scale a row; those in blocks are quantised
again. What a family calls its tensors is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.quantize_fp8 import Fp8Weight, quantize_fp8
from protocol.errors import UnsupportedModel
from workers.model.weights.checkpoint import Checkpoint
from workers.model.weights.weight_piece import Piece, stacked
from workers.shard import Shard

# Endings of names that stand beside the weights of such a checkpoint, and are no weights.
SCALE_NAMES = (
    *("weight_scale", "weight_scale_inv", "input_scale", "activation_scale", "output_scale"),
    *("q_scale", "k_scale", "v_scale", "kv_scale", "prob_scale", "prob_output_scale"),
)
# That are wide at a time. malloc keeps what a CPU's larger ones leave; a GPU has few launches rather.
_PART_ELEMENTS = {"cpu": 1 << 16, "cuda": 1 << 22}
_KEYS = ("k_scale", "k_proj.k_scale", "k_proj.output_scale", "attn.k_scale", "kv_scale")
_VALUES = ("v_scale", "v_proj.v_scale", "v_proj.output_scale", "attn.v_scale", "kv_scale")


@dataclass(frozen=True, slots=True)
class Fp8Piece:
    """One rank's part of a piece."""

    numbers: Tensor  # [outputs, features] float8_e4m3fn, maybe a view of the file
    scales: Tensor  # fp32, a row and a column for each block of the whole piece
    rows: Tensor  # [outputs] int64: where each one's scales are
    columns: Tensor  # [features] int64

    def put(self, target: Fp8Weight) -> None:
        """To its place of a weight that is multiplied in fp8, of the device's kind."""
        numbers, scales = target
        if self.scales.shape[1] > 1:
            for part, wide in self._wide(numbers.device):
                requantized, scales[part] = quantize_fp8(wide, numbers.dtype)
                _bytes(numbers[part]).copy_(_bytes(requantized))
            return
        _bytes(numbers).copy_(_bytes(self.numbers))
        scales.copy_(self.scales[self.rows])
        if numbers.dtype == torch.float8_e4m3fnuz:  # its numbers are half as large, and its NaN is -0
            _bytes(numbers).masked_fill_(_bytes(numbers) == 0x80, 0)
            scales.mul_(2.0)

    def widen(self, target: Tensor) -> None:
        """To its place of a weight in the model's dtype."""
        for part, wide in self._wide(target.device):
            target[part].copy_(wide)

    def _wide(self, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
        """Stretches of rows in fp32."""
        num_rows = max(_PART_ELEMENTS[device.type] // self.numbers.shape[1], 1)
        of_rows, columns = self.scales[self.rows].to(device), self.columns.to(device)
        for begin in range(0, len(self.numbers), num_rows):
            part = slice(begin, begin + num_rows)
            yield part, self.numbers[part].to(device).float().mul_(of_rows[part][:, columns])


def read_fp8_piece(
    piece: Piece, shard: Shard, numbers: Tensor, scales: Tensor, block: tuple[int, int] | None
) -> Fp8Piece:
    """`numbers`: this rank's, `scales`: as they are stored, of the whole. Raises UnsupportedModel where they misfit."""
    outputs, features = piece.shape
    height, width = block or piece.shape
    grid = -(-outputs // height), -(-features // width)
    if piece.transposed:
        raise UnsupportedModel(
            f"{piece.name} is in fp8 and of shape [inputs, outputs], of which no scales are known"
        )
    if scales.numel() == 1:
        height, width, grid = outputs, features, (1, 1)
    elif scales.shape in ((outputs,), (outputs, 1)):
        height, width, grid = 1, features, (outputs, 1)
    elif scales.shape != grid:
        raise UnsupportedModel(
            f"{piece.name} of shape {list(piece.shape)} has scales of shape {list(scales.shape)}: known are one,"
            f" one per output and {list(grid)}, one per block as config.json says"
        )
    rows, columns = (_own(piece, shard, axis) for axis in (0, 1))
    return Fp8Piece(numbers, scales.float().view(grid), rows // height, columns // width)


def read_kv_scales(
    checkpoint: Checkpoint, attention: str, num_kv_heads: int, shard: Shard, kv_dtype: torch.dtype
) -> Tensor | None:  # [2, KV heads of this rank] fp32
    """Of the module `attention`, by any of the names in use. None: there are none. Raises UnsupportedModel."""
    found = [_find_scales(checkpoint, attention, names, num_kv_heads) for names in (_KEYS, _VALUES)]
    keys, values = found
    if keys is None and values is None:
        return None
    if keys is None or values is None:
        raise UnsupportedModel(f"{attention} has a scale of {'values' if keys is None else 'keys'} alone")
    scales = torch.stack([keys, values])[:, list(stacked(num_kv_heads).share(shard))]
    if kv_dtype == torch.float8_e4m3fnuz:  # its numbers end at 240, and the scales are for those to 448
        scales = scales * 2.0
    return scales


def _find_scales(
    checkpoint: Checkpoint, attention: str, names: Sequence[str], num_kv_heads: int
) -> Tensor | None:  # [num_kv_heads]
    for name in (f"{attention}.{each}" for each in names):
        scales = checkpoint.find(name)
        if scales is None:
            continue
        if scales.numel() not in (1, num_kv_heads) or not bool((scales.float() > 0.0).all()):
            raise UnsupportedModel(
                f"{name} must be one number above 0, or one for each of the {num_kv_heads} KV heads,"
                f" and is of shape {list(scales.shape)}, at least {scales.float().amin().item()}"
            )
        return scales.float().flatten().expand(num_kv_heads)
    return None


def _own(piece: Piece, shard: Shard, axis: int) -> Tensor:
    """The whole piece's rows, or columns, that this rank has, in their order."""
    indices = torch.arange(piece.shape[axis])
    return torch.cat([indices[part] for part in piece.parts(shard)]) if piece.axis == axis else indices


def _bytes(numbers: Tensor) -> Tensor:
    return numbers.view(torch.uint8)
