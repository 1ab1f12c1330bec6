"""The orders of admission that there are, one short class each. Made by `scheduler.py`, compared by simulations."""

from __future__ import annotations

from workers.scheduling.admission import Moment
from workers.scheduling.sequence import Sequence
from workers.scheduling.waiting_line import WaitingLine

PREFILL_S = (
    0.015  # what a prefill costs beside its tokens: tiny ones are about equal, so their arrival decides
)


class FirstComeFirstServed(WaitingLine):
    """One long prompt makes all behind it wait."""

    __slots__ = ()

    def key(self, sequence: Sequence, moment: Moment) -> float:
        return 0.0


class LongestMatchFirst(WaitingLine):
    """Most cached tokens first. Whoever has none waits for as long as others that have some keep coming."""

    __slots__ = ()

    def key(self, sequence: Sequence, moment: Moment) -> float:
        return float(moment.num_uncached(sequence) - len(sequence.tokens))


class ResponseRatio(WaitingLine):
    """Lowest remaining prefill seconds per second waited first: short ones overtake, and nobody starves.

    Attention counts among the seconds: left out, a simulation of a public trace at high load gave 4 to 8 % longer
    mean times to the first token.

    Two begun prefills do not take turns. Whoever is served gets a better key by that; whoever overtakes it has
    waited less, so its key improves faster from then on too.
    """

    __slots__ = ()

    def key(self, sequence: Sequence, moment: Moment) -> float:
        num_uncached = moment.num_uncached(sequence)
        before = len(sequence.tokens) - num_uncached / 2  # tokens that one of these has before it, on average
        per_token_s = moment.prefill_s_per_token + before * moment.prefill_s_per_pair
        return (PREFILL_S + num_uncached * per_token_s) / (1.0 + moment.now_s - sequence.live.arrived_s)
