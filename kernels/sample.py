"""Cut a distribution down (min-p, top-k, top-p in this order) and draw from it. Every row stands for itself.

    min-p   keeps tokens with p >= min_p · max p
    top-k   keeps the k most likely, and whatever ties with the last of them
    top-p   keeps the fewest most likely tokens whose mass reaches top_p, and ties

A row's cut is a threshold on its logits, so it does not matter how many candidates were sorted to find it.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CANDIDATES = 1024  # sorted first for top-p; the whole vocabulary only where they do not hold the mass


def filter_logits(
    logits: Tensor,  # [rows, vocabulary] fp32, tokens cut off become -inf in place
    top_k: Tensor,  # [rows] int64, 0: off
    top_p: Tensor,  # [rows] fp32, 1: off
    min_p: Tensor,  # [rows] fp32, 0: off
) -> Tensor:
    if bool((min_p > 0).any()):
        _cut(logits, logits.amax(-1, keepdim=True) + min_p.log()[:, None])
    widest = int(top_k.max())
    if widest > 0:
        best = logits.topk(min(widest, logits.shape[-1])).values
        last = best.gather(1, (top_k - 1).clamp(0, best.shape[-1] - 1)[:, None])
        _cut(logits, last.masked_fill_((top_k == 0)[:, None], -torch.inf))
    if bool((top_p < 1).any()):
        _cut(logits, _top_p_threshold(logits, top_p))
    return logits


def draw(
    logits: Tensor,  # [rows, vocabulary] fp32
    uniforms: Tensor,  # [rows] float64 in [0, 1)
) -> Tensor:  # [rows] int64
    """The token at which the row's cumulative distribution, in the order of ids, passes its uniform number."""
    mass = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    token_ids = torch.searchsorted(mass, uniforms[:, None] * mass[:, -1:], right=True)
    return token_ids.squeeze(-1).clamp_(max=logits.shape[-1] - 1)


def _cut(logits: Tensor, threshold: Tensor) -> None:
    logits.masked_fill_(logits < threshold, -torch.inf)


def _top_p_threshold(logits: Tensor, top_p: Tensor) -> Tensor:  # -> [rows, 1]
    size = logits.shape[-1]
    total = logits.logsumexp(-1, keepdim=True)
    wanted = top_p[:, None].double()
    for width in (min(_CANDIDATES, size), size):
        best = logits.topk(width).values
        mass = (best - total).exp_().cumsum(-1, dtype=torch.float64)
        if width == size or bool(((mass[:, -1:] >= wanted) | (wanted >= 1)).all()):
            break
    kept = (mass < wanted).sum(-1, keepdim=True)  # one less than are kept: the next one reaches top_p
    threshold = best.gather(1, kept.clamp_(max=best.shape[-1] - 1))
    return threshold.masked_fill_(top_p[:, None] >= 1, -torch.inf)
