"""Cut a distribution down (min-p, top-k, top-p in this order) and draw from it. Every row stands for itself.

    min-p   keeps tokens with p >= min_p · max p
    top-k   keeps the k most likely, and whatever ties with the last of them
    top-p   keeps the fewest most likely tokens whose mass reaches top_p, and ties

A row's cut is a threshold on its logits, so it does not matter how many candidates were sorted to find it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_CANDIDATES = (64, 1024)  # sorted for top-p before the whole vocabulary is
_CHUNK = 256
_BELOW_ONE = 1.0 - 2.0**-40


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
    """The token at which the row's cumulative distribution, in the order of ids, passes its uniform number.

    In two strides, over chunks and then within one: a cumulative sum of the whole vocabulary takes ten times as long.
    """
    probabilities, missing = logits.softmax(-1), -logits.shape[-1] % _CHUNK
    if missing:
        probabilities = F.pad(probabilities, (0, missing))
    chunks = probabilities.view(logits.shape[0], -1, _CHUNK)
    sums = chunks.sum(-1).double()
    mass = sums.cumsum(-1)  # [rows, chunks]
    target = uniforms[:, None] * mass[:, -1:]
    chunk = torch.searchsorted(mass, target, right=True).clamp_(max=mass.shape[1] - 1)
    rest = target - (mass.gather(1, chunk) - sums.gather(1, chunk))
    inner = chunks.take_along_dim(chunk[:, :, None], 1).squeeze(1).cumsum(-1, dtype=torch.float64)
    rest = torch.minimum(
        rest, inner[:, -1:] * _BELOW_ONE
    )  # rounding must not lead past the last possible token
    token_ids = chunk * _CHUNK + torch.searchsorted(inner, rest, right=True)
    return token_ids.squeeze(-1).clamp_(max=logits.shape[-1] - 1)  # both clamps are for rows of NaN


def _cut(logits: Tensor, threshold: Tensor) -> None:
    logits.masked_fill_(logits < threshold, -torch.inf)


def _top_p_threshold(logits: Tensor, top_p: Tensor) -> Tensor:  # -> [rows, 1]
    """Sorts few candidates first, and more only in rows where those do not hold the mass."""
    total = logits.logsumexp(-1)
    threshold = torch.full_like(total, -torch.inf)
    left = (top_p < 1).nonzero().squeeze(-1)
    size = logits.shape[-1]
    for width in (*(each for each in _CANDIDATES if each < size), size):
        best = logits[left].topk(width).values
        mass = (best - total[left, None]).exp_().cumsum(-1, dtype=torch.float64)
        num_before = (mass < top_p[left, None].double()).sum(-1)  # the next one reaches top_p
        threshold[left] = best.gather(1, num_before.clamp(max=width - 1)[:, None]).squeeze(-1)
        left = left[num_before == width]
        if not len(left):
            break
    return threshold[:, None]
