"""Send each token through the experts that its router likes best, and sum what they say.

    p = softmax(router(x));   chosen = the k largest p;   out[t] = Σ over chosen e of weight[t, e] · expert_e(x[t])
    expert_e(x) = down_e(act(gate) · up) of [gate | up] = gate_up_e(x);   weight = p, or p / Σ of the chosen p

Tokens are grouped by expert, so that each expert that any token chose runs once, over a matrix. This is what a CPU
runs; `gpu/experts/` means the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import repeat

import torch
from torch import Tensor

from kernels.activations import Activate
from kernels.linear import Linear
from kernels.quantize_fp8 import Weight

RunExperts = Callable[[Tensor, Tensor, Tensor, Activate], Tensor]  # as `GroupedExperts` is called
# Takes gate_up [2 · features, hidden] and down [hidden, features] of each expert in turn, and the number of experts. A
# weight is made when it is asked for: not to be held beside what was made of it.
PackExperts = Callable[[Iterable[Weight], int], RunExperts]


def choose_experts(
    scores: Tensor,  # [tokens, experts], the router's
    num_chosen: int,
    normalized: bool,
) -> tuple[Tensor, Tensor]:  # weights [tokens, num_chosen] fp32, experts [tokens, num_chosen] int64
    weights, chosen = scores.float().softmax(-1).topk(num_chosen, -1)
    if normalized:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, chosen


class GroupedExperts:
    """Two linears an expert."""

    __slots__ = ("_experts",)

    def __init__(
        self,
        weights: Iterable[Weight],
        num_experts: int,
        pack: Callable[..., Linear],
    ) -> None:
        linears = list(map(pack, weights, repeat(None)))
        self._experts = list(zip(linears[::2], linears[1::2], strict=True))
        assert len(self._experts) == num_experts, f"{len(self._experts)} experts, not {num_experts}"

    def __call__(
        self,
        x: Tensor,  # [tokens, hidden]
        weights: Tensor,  # [tokens, num_chosen] fp32
        chosen: Tensor,  # [tokens, num_chosen] int64
        activate: Activate,  # [any, 2 · features] -> [any, features]
    ) -> Tensor:  # [tokens, hidden]
        num_tokens, num_chosen = chosen.shape
        flat = chosen.flatten()
        order = flat.argsort(stable=True)  # the pairs (token, choice), those of one expert side by side
        counts = flat.bincount(minlength=len(self._experts)).tolist()
        grouped, outputs, begin = x[order // num_chosen], [], 0
        for (gate_up, down), count in zip(self._experts, counts, strict=True):
            if count:
                outputs.append(down(activate(gate_up(grouped[begin : begin + count]))))
                begin += count
        by_pair = torch.empty_like(grouped)
        by_pair[order] = torch.cat(outputs)
        weighted = by_pair.view(num_tokens, num_chosen, -1) * weights.to(x.dtype)[:, :, None]
        return weighted.sum(1)
