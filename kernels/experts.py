"""Send each token through the experts that its router likes best, and sum what they say.

    p = softmax(router(x));   chosen = the k largest p;   out[t] = Σ over chosen e of weight[t, e] · expert_e(x[t])

where weight is p, or p divided by the sum of the chosen. Tokens are grouped by expert, so that each expert that any
token chose runs once, over a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def choose_experts(
    scores: Tensor,  # [tokens, experts], the router's
    num_chosen: int,
    normalized: bool,
) -> tuple[Tensor, Tensor]:  # weights [tokens, num_chosen] fp32, experts [tokens, num_chosen] int64
    weights, chosen = scores.float().softmax(-1).topk(num_chosen, -1)
    if normalized:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, chosen


def run_experts(
    x: Tensor,  # [tokens, hidden]
    weights: Tensor,  # [tokens, num_chosen] fp32
    chosen: Tensor,  # [tokens, num_chosen] int64
    experts: Sequence[Callable[[Tensor], Tensor]],  # each [any, hidden] -> [any, hidden]
) -> Tensor:  # [tokens, hidden]
    num_tokens, num_chosen = chosen.shape
    flat = chosen.flatten()
    order = flat.argsort(stable=True)  # the pairs (token, choice), those of one expert side by side
    counts = flat.bincount(minlength=len(experts)).tolist()
    grouped, outputs, begin = x[order // num_chosen], [], 0
    for expert, count in zip(experts, counts, strict=True):
        if count:
            outputs.append(expert(grouped[begin : begin + count]))
            begin += count
    by_pair = torch.empty_like(grouped)
    by_pair[order] = torch.cat(outputs)
    weighted = by_pair.view(num_tokens, num_chosen, -1) * weights.to(x.dtype)[:, :, None]
    return weighted.sum(1)
