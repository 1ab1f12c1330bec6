"""y = x Wᵀ + b with bits that depend on the row alone: not on how many rows there are, nor on its place among them.

Built by `workers/model/weights/load_weights.py` in place of `kernels/linear.py`, over the same packed weights. Rows are
computed in tiles of a few sizes. Which sizes agree to the bit, at every place of a tile, is found out at load for every
shape of a weight, and again when the number of threads changes; a tile of one row, which agrees with itself, is always
there.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.fixed_tiles import ALIGNMENT_BYTES, agreeing, aligned, cut
from kernels.linear import Linear, LinearPacker

_SIZES = (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 128, 256, 512)  # rows
_REFERENCES = (64, 16, 4, 2)  # a size that fails by itself cannot tell whether another one is right
_MAX_TILE_ELEMENTS = 1 << 22  # of the result of a tile of more than 64 rows: larger ones save nothing
_MIN_PACKED_FP32_ELEMENTS = 1 << 16  # from two rows on, packing pays earlier than at one row
# Of two orders of summing most fp32 results tell, but only one of 5000 in bf16, which is rounded most (3072 features).
_PROBED_RESULTS = {torch.float32: 1 << 12, torch.float16: 1 << 14, torch.bfloat16: 1 << 17}
_MAX_PROBES = 256

_Verified = dict[tuple[object, ...], tuple[int, ...]]


class TiledLinear:
    """Another linear, called with verified numbers of rows only."""

    __slots__ = ("_apply", "_dtype", "_key", "_shape", "_verified")

    def __init__(self, linear: Linear, weight: Tensor, bias: Tensor | None, verified: _Verified) -> None:
        """`verified` is shared by the linears of a model, which have few shapes."""
        self._apply = linear
        self._shape = tuple(weight.shape)  # out_features, in_features
        self._dtype = weight.dtype
        start = weight.data_ptr() % ALIGNMENT_BYTES
        self._key = (type(linear), self._shape, weight.dtype, bias is None, start)
        self._verified = verified
        self.sizes()

    def sizes(self) -> tuple[int, ...]:
        """The verified numbers of rows, ascending, for torch's present number of threads."""
        key = (*self._key, torch.get_num_threads())
        found = self._verified.get(key)
        if found is None:
            found = self._verified[key] = tuple(self._probe()) or (1,)
        return found

    def __call__(self, x: Tensor) -> Tensor:  # [tokens, in_features] -> [tokens, out_features]
        num_rows = len(x)
        tiles = cut(num_rows, self.sizes())
        if len(tiles) == 1:
            return self._apply_tile(x, 0, tiles[0])[:num_rows]
        parts, begin = [], 0
        for size in tiles:
            parts.append(self._apply_tile(x, begin, size))
            begin += size
        return torch.cat(parts)[:num_rows] if parts else self._apply(x)

    def _apply_tile(self, x: Tensor, begin: int, size: int) -> Tensor:
        rows = x[begin : begin + size]
        missing = size - len(rows)
        return self._apply(F.pad(rows, (0, 0, 0, missing)) if missing else aligned(rows))

    def _probe(self) -> list[int]:
        generator = torch.Generator().manual_seed(0)
        num_outputs, num_inputs = self._shape
        rows = torch.randn(_REFERENCES[0], num_inputs, generator=generator).to(self._dtype)

        @lru_cache(maxsize=1)  # references come one after the other
        def expected(reference: int) -> Tensor:
            return torch.cat([self._apply(aligned(part)) for part in torch.split(rows, reference)])

        def agree(size: int, reference: int) -> bool:
            for _ in range(self._num_probes(size)):
                places = torch.randint(len(rows), (size,), generator=generator)
                if not torch.equal(self._apply(rows[places]), expected(reference)[places]):
                    return False
            return True

        sizes = [size for size in _SIZES if size <= max(_REFERENCES[0], _MAX_TILE_ELEMENTS // num_outputs)]
        return agreeing(sizes, _REFERENCES, agree)

    def _num_probes(self, size: int) -> int:
        """Of calls with one tile: enough for all places together, and a sixteenth of that for each."""
        wanted = _PROBED_RESULTS[self._dtype] // self._shape[0]
        return min(max(wanted // size, wanted // 16, 2), _MAX_PROBES)


class DeterministicPacker:
    """Turns a dense weight into the fastest linear whose rows stand for themselves."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._packer = LinearPacker(dtype, _MIN_PACKED_FP32_ELEMENTS)
        self._verified: _Verified = {}

    def pack(self, weight: Tensor, bias: Tensor | None) -> Linear:
        return TiledLinear(self._packer.pack(weight, bias), weight, bias, self._verified)
