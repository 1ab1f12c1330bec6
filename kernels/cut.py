"""Cuts a distribution down to its likely tokens: min-p, top-k, top-p, in this order. Every row stands for itself.

    min-p   keeps tokens with p >= min_p · max p
    top-k   keeps the k most likely
    top-p   keeps the fewest most likely tokens whose mass reaches top_p of what min-p and top-k have left

A cut is a threshold on a row's probabilities. Tokens as likely as the last one kept are kept too, so it matters
neither how many candidates were sorted to find it, nor in which order equal numbers come.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.fixed_point import chunk_masses, fixed
from kernels.largest import largest

_CANDIDATES = 128  # sorted for top-p before a whole vocabulary is


@dataclass(frozen=True, slots=True)
class Cuts:
    """One number a row. None: no row uses it."""

    min_p: Tensor | None = None  # [rows, 1] fp32, 0: off
    top_k: Tensor | None = None  # [rows, 1] int64, 0: off
    widest_top_k: int = 0  # the largest in `top_k`
    top_p: Tensor | None = None  # [rows, 1] float64, 1: off


def cut(
    probabilities: Tensor,  # [rows, vocabulary] fp32; those cut off become 0 in place, the others stay as they are
    cuts: Cuts,
) -> None:
    best = largest(probabilities, _num_candidates(cuts))
    least = _least_kept(best, cuts)
    if least is not None:
        _keep_from(probabilities, least)
    if cuts.top_p is not None:
        _keep_from(probabilities, _nucleus(probabilities, best, cuts.top_p))


def _num_candidates(cuts: Cuts) -> int:
    if cuts.top_p is None:
        return max(cuts.widest_top_k, 1)
    return max(cuts.widest_top_k, _CANDIDATES)


def _keep_from(probabilities: Tensor, least: Tensor) -> None:
    """A product with 0 or 1 in fp32: on a CPU, booleans take ten times as long."""
    probabilities.mul_(torch.ge(probabilities, least, out=torch.empty_like(probabilities)))


def _least_kept(best: Tensor, cuts: Cuts) -> Tensor | None:  # -> [rows, 1]
    """By min-p and top-k, of the row's largest probabilities [rows, candidates]."""
    least = None
    if cuts.min_p is not None:
        least = cuts.min_p * best[:, :1]
    if cuts.top_k is not None:
        last = best.gather(1, (cuts.top_k - 1).clamp_(0, best.shape[-1] - 1))
        last.masked_fill_(cuts.top_k == 0, 0.0)
        least = last if least is None else torch.maximum(least, last)
    return least


def _nucleus(probabilities: Tensor, best: Tensor, top_p: Tensor) -> Tensor:  # -> [rows, 1]
    """The least probability that top-p keeps. Sorts all of a row only where its candidates do not hold the mass.

    Candidates that the other cuts have taken away come last among them, so they change nothing.
    """
    off = top_p >= 1.0
    wanted = (top_p * chunk_masses(probabilities).sum(-1, keepdim=True)).masked_fill_(off, 0.0)
    least, num_before = _reach(best, wanted)
    if best.shape[-1] < probabilities.shape[-1]:
        short = (num_before == best.shape[-1]).squeeze(-1).nonzero().squeeze(-1)
        if len(short):
            everything = largest(probabilities[short], probabilities.shape[-1])
            least[short] = _reach(everything, wanted[short])[0]
    return least.masked_fill_(off, 0.0)


def _reach(best: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:  # -> [rows, 1], [rows, 1]
    """The probability with which the mass, from the largest on, reaches what is wanted; and how many come before."""
    num_before = (fixed(best).cumsum_(-1) < wanted).sum(-1, keepdim=True)
    return best.gather(1, num_before.clamp(max=best.shape[-1] - 1)), num_before
