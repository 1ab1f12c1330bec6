"""A layer's experts on a GPU: what `kernels/experts.py` means without a look of the host, so that a graph can hold it.

    sort by expert -> gate_up of each expert's rows -> gated activation -> down -> sum over a token's choices

Built when weights are loaded, by `kernel_table.py`'s packer. Under tensor parallelism each rank has its part of every
expert's features, and what comes out is its summand.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.activations import Activate
from kernels.gpu.experts.grouped_matmul import choose_tile, experts_matmul, tiles_of
from kernels.gpu.experts.order import SortedPairs, sort_by_expert
from kernels.gpu.experts.weighted_sum import sum_of_experts
from kernels.gpu.linear.fixed_order_matmul import Tile
from kernels.gpu.linear.quantize_fp8 import quantize_fp8
from kernels.quantize_fp8 import Fp8Weight, Weight


class StackedExperts:
    __slots__ = ("_down", "_gate_up", "_num_experts", "_tiles", "_unmet_tiles")

    def __init__(
        self,
        weights: Iterable[Weight],
        num_experts: int,
        fp8_dtype: torch.dtype | None = None,
        deterministic: bool = False,
    ) -> None:
        """`weights`: gate_up [2 · features, hidden] and down [hidden, features] of each expert in turn, put into their
        places as they come. `fp8_dtype`: to be multiplied in. `deterministic`: one tile for any number of rows."""
        stacks: list[_Stack] = []
        for index, weight in enumerate(weights):
            expert, kind = divmod(index, 2)
            if expert == 0:
                stacks.append(_Stack.of(num_experts, weight, fp8_dtype))
            stacks[kind].put(expert, weight)
        self._gate_up, self._down = stacks
        self._num_experts = num_experts
        self._tiles = tiles_of(self._down.weight.dtype, deterministic)
        self._unmet_tiles = self._tiles

    def __call__(
        self,
        x: Tensor,  # [tokens, hidden]
        weights: Tensor,  # [tokens, num_chosen] fp32
        chosen: Tensor,  # [tokens, num_chosen] int32 or int64
        activate: Activate,  # [pairs, 2 · features] -> [pairs, features]
    ) -> Tensor:  # [tokens, hidden]
        tile = choose_tile(self._tiles, chosen.numel(), self._num_experts)
        for other in self._unmet_tiles:  # at the first call, so that none is left to be compiled in traffic
            if other != tile:
                self._run(x, weights, chosen, activate, other)
        self._unmet_tiles = ()
        return self._run(x, weights, chosen, activate, tile)

    def _run(self, x: Tensor, weights: Tensor, chosen: Tensor, activate: Activate, tile: Tile) -> Tensor:
        pairs = sort_by_expert(chosen, self._num_experts, tile.rows)
        features = activate(self._gate_up.multiply(x, pairs, tile, from_tokens=True))
        return sum_of_experts(self._down.multiply(features, pairs, tile, from_tokens=False), weights)


@dataclass(frozen=True, slots=True)
class _Stack:
    """The same linear of every expert."""

    weight: Tensor  # [experts, outputs, features]
    scales: Tensor | None  # [experts, outputs, 1] fp32, of fp8 weights

    @classmethod
    def of(cls, num_experts: int, first: Weight, fp8_dtype: torch.dtype | None) -> _Stack:
        like = first.numbers if isinstance(first, Fp8Weight) else first
        shape = (num_experts, *like.shape)
        if fp8_dtype is None:
            return cls(like.new_empty(shape), None)
        scales = like.new_empty(num_experts, len(like), 1, dtype=torch.float32)
        return cls(like.new_empty(shape, dtype=fp8_dtype), scales)

    def put(self, expert: int, weight: Weight) -> None:
        if isinstance(weight, Fp8Weight):
            assert self.scales is not None, "whoever has experts in fp8 says so"
            self.weight[expert].view(torch.uint8).copy_(weight.numbers.view(torch.uint8))
            self.scales[expert].copy_(weight.scales)
        elif self.scales is None:
            self.weight[expert].copy_(weight)
        else:
            quantize_fp8(weight, self.weight.dtype, (self.weight[expert], self.scales[expert]))

    def multiply(self, x: Tensor, pairs: SortedPairs, tile: Tile, from_tokens: bool) -> Tensor:
        rows, scales = (x, None) if self.scales is None else quantize_fp8(x, self.weight.dtype)
        out = x.new_empty(len(pairs.order), self.weight.shape[1])
        experts_matmul(rows, scales, self.weight, self.scales, pairs, tile, from_tokens, out)
        return out
