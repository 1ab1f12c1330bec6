"""Which replica takes a request: a pure function of matches and loads. Called by `dispatcher.py` and by simulations.

Knows nothing of the index, the sockets or the clock: whatever it needs is in the candidates and the random source.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from router.routed_request import Decision, Reason

RUNNING_SEQUENCE_TOKENS = (
    256  # a running sequence slows a prefill about as much as this many tokens more of it
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One replica that may take the request, as the router sees it at this moment."""

    replica: str
    matched_tokens: int  # of the prompt, predicted to be cached there
    prefill_tokens: int = 0  # uncached, sent there by anybody, whose prefill has not ended
    running: int = 0  # sequences there, waiting ones included
    prefill_capacity_tokens: int = 16_384  # with more prefill than this outstanding, it is over its capacity
    used_kv_tokens: int = 0  # in blocks that some sequence holds
    kv_capacity_tokens: int = 1 << 62
    prefill_s_per_token: float = 0.0  # 0: not measured yet
    decode_step_s: float = 0.0


def choose(
    num_prompt_tokens: int,
    candidates: Sequence[Candidate],
    rng: random.Random,
    *,
    affinity: str | None = None,
) -> Decision:
    """The rules, in order:

    1. One candidate takes the request: ONLY.
    2. Of the replicas that hold the longest match, those that the request would not bring over their capacity;
       of these the least loaded: PREFIX.
    3. They are all over it: the least loaded of all, BALANCED.
    4. Nobody holds any of the prompt: the least loaded of all, COLD.

    Load is in tokens of work that would lie before the first token: prefill outstanding there, this prompt's
    uncached rest, and a charge for each running sequence. Equal loads: the affinity's own choice, else at random.
    """
    assert candidates, "choose needs at least one candidate"
    best = max(each.matched_tokens for each in candidates)
    if len(candidates) == 1:
        reason, eligible = Reason.ONLY, list(candidates)
    elif best == 0:
        reason, eligible = Reason.COLD, list(candidates)
    else:
        reason, eligible = Reason.PREFIX, _holders(num_prompt_tokens, candidates, best)
        if not eligible:
            reason, eligible = Reason.BALANCED, list(candidates)
    chosen = _least_loaded(num_prompt_tokens, eligible, rng, affinity)
    return Decision(chosen.replica, chosen.matched_tokens, _work(num_prompt_tokens, chosen), reason, best)


def _holders(num_prompt_tokens: int, candidates: Sequence[Candidate], match: int) -> list[Candidate]:
    """Those with this match that stay within their capacity."""
    return [
        each
        for each in candidates
        if each.matched_tokens == match and not _over_capacity(num_prompt_tokens, each)
    ]


def _over_capacity(num_prompt_tokens: int, candidate: Candidate) -> bool:
    prefill = candidate.prefill_tokens + _uncached(num_prompt_tokens, candidate)
    return (
        prefill > candidate.prefill_capacity_tokens
        or candidate.used_kv_tokens + prefill > candidate.kv_capacity_tokens
    )


def _least_loaded(
    num_prompt_tokens: int, candidates: Sequence[Candidate], rng: random.Random, affinity: str | None
) -> Candidate:
    least = min(_work(num_prompt_tokens, each) for each in candidates)
    ties = [each for each in candidates if _work(num_prompt_tokens, each) == least]
    if affinity is None or len(ties) == 1:
        return rng.choice(ties)
    return max(ties, key=lambda each: _rendezvous(affinity, each.replica))


def _work(num_prompt_tokens: int, candidate: Candidate) -> float:
    uncached = _uncached(num_prompt_tokens, candidate)
    return float(candidate.prefill_tokens + uncached + RUNNING_SEQUENCE_TOKENS * candidate.running)


def _uncached(num_prompt_tokens: int, candidate: Candidate) -> int:
    return max(0, num_prompt_tokens - candidate.matched_tokens)


def _rendezvous(affinity: str, replica: str) -> bytes:
    """A hash that every router agrees on, and that moves few sessions when replicas come and go."""
    return hashlib.blake2b(f"{affinity}\0{replica}".encode(), digest_size=8).digest()
