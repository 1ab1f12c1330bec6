"""How fast this replica is, learnt from its own steps. Fed by the engine, read by every router through `Load`.

Two averages, and two fits that say what they leave out: prefill seconds by how much is computed and how much lies
before it, decode seconds by the batch. Old steps fade, so a device that has become slower is known to be so within a
few dozen steps. Nothing is faster than the device, but much is slower (a pause, a first compilation), so a step
that took far longer than predicted counts only a little longer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.speeds import PrefillRate, Speeds
from workers.step_plan import StepPlan

SMOOTHING = 0.1  # weight of the newest step
MIN_PREFILL_TOKENS = 16  # fewer say nothing about the speed of prefill
MOST_SURPRISE = 2.0  # a step counts as at most so many times what was predicted
TRUSTED_STEPS = 3.0  # before so much weight has come together, nothing is a surprise
PAIR_SHARE = 2.05e-5  # cost of a pair in tokens, of a model and device that are like most
PAIR_DOUBT = 0.01  # how much evidence against `PAIR_SHARE` moves away from it
SEQUENCE_DOUBT = 0.05  # the same for decodes: batches of one size say nothing about others


@dataclass(slots=True)
class PrefillFit:
    """Least squares of seconds = a * tokens + b * pairs; b is drawn to its usual share while lengths are alike."""

    s_per_token: float = 0.0  # 0: not measured yet
    s_per_pair: float = 0.0
    weight: float = 0.0
    _tokens2: float = 0.0  # fading sums of products
    _tokens_pairs: float = 0.0
    _pairs2: float = 0.0
    _tokens_s: float = 0.0
    _pairs_s: float = 0.0

    def observe(self, num_tokens: float, num_pairs: float, seconds: float) -> None:
        if self.weight > TRUSTED_STEPS:
            expected_s = self.s_per_token * num_tokens + self.s_per_pair * num_pairs
            seconds = min(seconds, MOST_SURPRISE * expected_s)
        keep = 1.0 - SMOOTHING
        self.weight = keep * self.weight + 1.0
        self._tokens2 = keep * self._tokens2 + num_tokens * num_tokens
        self._tokens_pairs = keep * self._tokens_pairs + num_tokens * num_pairs
        self._pairs2 = keep * self._pairs2 + num_pairs * num_pairs
        self._tokens_s = keep * self._tokens_s + num_tokens * seconds
        self._pairs_s = keep * self._pairs_s + num_pairs * seconds
        self._solve()

    def _solve(self) -> None:
        """Minimise the squares + doubt * pairs2 * (b - share * a)^2, with neither of them negative."""
        doubt = PAIR_DOUBT * self._pairs2
        tokens2 = self._tokens2 + doubt * PAIR_SHARE * PAIR_SHARE
        mixed = self._tokens_pairs - doubt * PAIR_SHARE
        pairs2 = self._pairs2 + doubt
        determinant = tokens2 * pairs2 - mixed * mixed
        per_token = per_pair = -1.0
        if determinant > 1e-12 * tokens2 * pairs2:
            per_token = (self._tokens_s * pairs2 - self._pairs_s * mixed) / determinant
            per_pair = (self._pairs_s * tokens2 - self._tokens_s * mixed) / determinant
        if per_token <= 0.0:  # along the usual share, which fits always
            along2 = self._tokens2 + 2 * PAIR_SHARE * self._tokens_pairs + PAIR_SHARE**2 * self._pairs2
            per_token = (self._tokens_s + PAIR_SHARE * self._pairs_s) / along2
            per_pair = PAIR_SHARE * per_token
        elif per_pair < 0.0:
            per_token, per_pair = self._tokens_s / self._tokens2, 0.0
        self.s_per_token, self.s_per_pair = per_token, per_pair


@dataclass(slots=True)
class DecodeFit:
    """A line through seconds over batch sizes, flat while those do not differ."""

    weight: float = 0.0
    per_sequence_s: float = 0.0
    _num: float = 0.0  # fading means
    _seconds: float = 0.0
    _num2: float = 0.0
    _num_seconds: float = 0.0

    def observe(self, num_sequences: int, seconds: float) -> None:
        if self.weight > TRUSTED_STEPS:
            seconds = min(seconds, MOST_SURPRISE * self.at(num_sequences))
        self.weight = (1.0 - SMOOTHING) * self.weight + 1.0
        share = 1.0 / self.weight
        self._num += share * (num_sequences - self._num)
        self._seconds += share * (seconds - self._seconds)
        self._num2 += share * (num_sequences * num_sequences - self._num2)
        self._num_seconds += share * (num_sequences * seconds - self._num_seconds)
        variance = max(0.0, self._num2 - self._num * self._num)
        slope = (self._num_seconds - self._num * self._seconds) / (
            variance + SEQUENCE_DOUBT * max(1.0, self._num)
        )
        self.per_sequence_s = min(max(0.0, slope), self._seconds / max(1.0, self._num))

    def at(self, num_sequences: float) -> float:
        """Seconds of a step with so many decodes; 0 until measured."""
        return max(0.0, self._seconds + self.per_sequence_s * (num_sequences - self._num))


@dataclass(slots=True)
class SpeedMeter:
    """The averages are exponential; 0 until measured."""

    prefill_s_per_token: float = 0.0
    decode_step_s: float = 0.0
    prefill: PrefillFit = field(default_factory=PrefillFit)
    decode: DecodeFit = field(default_factory=DecodeFit)
    utilization: PrefillRate = field(default_factory=PrefillRate)

    def observe(self, plan: StepPlan, elapsed_s: float, now_s: float = 0.0) -> None:
        """A step's seconds belong to its prefill when it has any, beyond what its decodes usually take."""
        num_decodes, num_prefill_tokens = plan.num_decodes, plan.num_prefill_tokens
        if elapsed_s <= 0.0:
            return  # the clock did not move: nothing was measured
        if num_prefill_tokens:
            self.utilization.add(self._prefill_part(num_decodes, elapsed_s), now_s)
        if num_prefill_tokens == 0:
            self.decode_step_s = _blend(self.decode_step_s, elapsed_s)
            self.decode.observe(num_decodes, elapsed_s)
        elif num_prefill_tokens >= MIN_PREFILL_TOKENS:
            spent_s = max(elapsed_s - (self.decode_step_s if num_decodes else 0.0), 0.0)
            self.prefill_s_per_token = _blend(self.prefill_s_per_token, spent_s / num_prefill_tokens)
            num_pairs = sum(each.num_tokens * (each.start + each.num_tokens / 2) for each in plan.chunks)
            self.prefill.observe(num_prefill_tokens, num_pairs, self._prefill_part(num_decodes, elapsed_s))

    @property
    def speeds(self) -> Speeds:
        """A prefill takes at least about as long as a decode alone: the step's own cost, and reading the weights."""
        alone_s = self.decode.at(1)
        return Speeds(
            prefill_s=alone_s,
            prefill_s_per_token=self.prefill.s_per_token,
            prefill_s_per_pair=self.prefill.s_per_pair,
            decode_s=alone_s,
            decode_s_per_sequence=self.decode.per_sequence_s,
        )

    def _prefill_part(self, num_decodes: int, elapsed_s: float) -> float:
        """Without what the decodes beside it add; the weights are read once for both."""
        beside_s = self.decode.per_sequence_s * num_decodes
        return max(elapsed_s - beside_s, elapsed_s / MOST_SURPRISE)


def _blend(average: float, newest: float) -> float:
    return newest if average == 0.0 else average + SMOOTHING * (newest - average)
