"""Many small products of matrices at once, each row with bits that depend on its own operands alone.

    out[i] = a[i] · b[i]

Part of `deterministic_attention.py`. Rows are padded, and the products cut into batches, of verified sizes: those that
agree to the bit with each other, at every place. As in `deterministic_linear.py`, they are found out at the first call,
and again when the number of threads changes.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.fixed_tiles import ALIGNMENT_BYTES, agreeing, aligned, cut

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_MAX_ROWS_TOGETHER = 1024  # of all products of a batch: more save nothing
_REFERENCES = ((16, 1), (4, 1), (2, 1), (1, 1))
_NUM_PROBES = 2  # calls of each shape: most of their fp32 results would tell
_POOL = 8  # different products that a probe draws from

Shape = tuple[int, int]  # rows of each product, products
Batches = dict[int, tuple[int, ...]]  # by the rows of each product, both ascending


class FixedProducts:
    """Products [rows, inner] · [inner, columns] in fp32, for any number of rows and of products."""

    def __init__(self, inner: int, columns: int, transposed: bool) -> None:
        """`transposed`: the second operand is a view of [columns, inner]."""
        self._inner = inner
        self._columns = columns
        self._transposed = transposed
        self._verified: dict[int, Batches] = {}  # by the number of threads

    def row_sizes(self) -> tuple[int, ...]:
        """The numbers of rows that need no padding, ascending."""
        return tuple(self._batches())

    def multiply(
        self,
        a: Tensor,  # [products, rows, inner] fp32
        b: Tensor,  # [products, inner, columns] fp32, each at an aligned start
    ) -> Tensor:  # [products, rows, columns]
        num_rows = a.shape[1]
        tiles = cut(num_rows, self.row_sizes())
        if tiles == (num_rows,):
            return self._multiply_tile(a, b)
        parts, begin = [], 0
        for size in tiles:
            rows = a[:, begin : begin + size]
            parts.append(self._multiply_tile(F.pad(rows, (0, 0, 0, size - rows.shape[1])), b))
            begin += size
        return torch.cat(parts, 1)[:, :num_rows]

    def _multiply_tile(self, a: Tensor, b: Tensor) -> Tensor:
        batches = self._batches()[a.shape[1]]
        out = a.new_empty(*a.shape[:2], self._columns)
        begin = 0
        while begin < len(a):
            end = begin + next(size for size in reversed(batches) if size <= len(a) - begin)
            _multiply_into(out[begin:end], aligned(a[begin:end]), b[begin:end])
            begin = end
        return out

    def _batches(self) -> Batches:
        threads = torch.get_num_threads()
        found = self._verified.get(threads)
        if found is None:
            found = self._verified[threads] = self._probe()
        return found

    def _probe(self) -> Batches:
        generator = torch.Generator().manual_seed(0)
        a = torch.randn(_POOL, max(_ROWS), self._inner, generator=generator)
        shape = (self._columns, self._inner) if self._transposed else (self._inner, self._columns)
        stored = torch.randn(_POOL, *shape, generator=generator)

        def multiply(products: Tensor, rows: Tensor) -> Tensor:
            b = stored[products]
            return torch.bmm(a[products][:, rows], b.transpose(1, 2) if self._transposed else b)

        @lru_cache(maxsize=1)  # references come one after the other
        def expected(reference: Shape) -> Tensor:
            parts = torch.split(torch.arange(a.shape[1]), reference[0])
            products = torch.split(torch.arange(_POOL), 1)
            return torch.cat([torch.cat([multiply(each, rows) for rows in parts], 1) for each in products])

        def agree(shape: Shape, reference: Shape) -> bool:
            for _ in range(_NUM_PROBES):
                rows = torch.randint(a.shape[1], shape[:1], generator=generator)
                products = torch.randint(_POOL, shape[1:], generator=generator)
                if not torch.equal(multiply(products, rows), expected(reference)[products][:, rows]):
                    return False
            return True

        shapes = [(rows, batch) for rows in _ROWS for batch in _BATCHES if rows * batch <= _MAX_ROWS_TOGETHER]
        return _by_rows(agreeing(shapes, _REFERENCES, agree))


def _by_rows(shapes: list[Shape]) -> Batches:
    """Only rows that are verified for a single product too: any number of products can then be cut."""
    single = [rows for rows, batch in shapes if batch == 1]
    return {each: tuple(batch for rows, batch in shapes if rows == each) for each in single}


def _multiply_into(out: Tensor, a: Tensor, b: Tensor) -> None:
    if out.data_ptr() % ALIGNMENT_BYTES:
        out.copy_(torch.bmm(a, b))
    else:
        torch.bmm(a, b, out=out)
