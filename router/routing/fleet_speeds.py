"""How fast each replica counts: its own speeds, or those of the fleet where they are the same but for noise.

Kept by `prefill_board.py`, by whose places these columns go. Measurements of equal machines differ, if only a little:
taken as they are, the one that looks fastest would get every cold request of a quiet hour, and no tie would be left
for chance or affinity to break.
"""

from __future__ import annotations

from protocol.speeds import UNMEASURED, Speeds

# Of a replica when none has measured its own yet: about a 32B dense model on two data centre GPUs.
ASSUMED_SPEEDS = Speeds(0.015, 1 / 16_000, 2.05e-5 / 16_000, 0.02, 0.000_25)
ALIKE = 1.25  # speeds that differ by less are taken for measurements of the same
REFERENCE_TOKENS = 4_000  # of the prompt by which they are compared


class FleetSpeeds:
    """The first four columns of `ReplicaColumns`."""

    def __init__(self) -> None:
        self.prefill_s: list[float] = []
        self.prefill_s_per_token: list[float] = []
        self.prefill_s_per_pair: list[float] = []
        self.decode_s: list[float] = []
        self._own: list[Speeds] = []
        self._pooled_s: list[float] = []  # of the reference prompt, when speeds were pooled last
        self._usual = ASSUMED_SPEEDS
        self._reports_until_pooled = 0

    def add(self) -> None:
        """One place more; until it has measured its speeds it counts as fast as the others."""
        self._own.append(UNMEASURED)
        self._pooled_s.append(0.0)
        self.prefill_s.append(self._usual.prefill_s)
        self.prefill_s_per_token.append(self._usual.prefill_s_per_token)
        self.prefill_s_per_pair.append(self._usual.prefill_s_per_pair)
        self.decode_s.append(self._usual.decode_s)

    def remove(self, place: int) -> None:
        del self._own[place], self._pooled_s[place]
        for column in (self.prefill_s, self.prefill_s_per_token, self.prefill_s_per_pair, self.decode_s):
            del column[place]

    def report(self, place: int, speeds: Speeds) -> None:
        """Pooling costs the fleet's size, so it is done once for so many reports, and at once for what has changed."""
        self._reports_until_pooled -= 1
        if speeds.measured:  # else: what it measured before is better than a guess
            self._own[place] = speeds
        changed = speeds.measured and not _alike(_reference_s(speeds), self._pooled_s[place])
        if changed or self._reports_until_pooled <= 0:
            self._pool()

    def seconds_to_prefill(self, place: int, num_uncached: int, num_cached: int) -> float:
        speeds = Speeds(
            self.prefill_s[place], self.prefill_s_per_token[place], self.prefill_s_per_pair[place]
        )
        return speeds.seconds_to_prefill(num_uncached, num_cached)

    def _pool(self) -> None:
        """Whoever is about as fast as the middle one, or not measured, counts as fast as that."""
        self._reports_until_pooled = len(self._own)
        measured = sorted((speeds for speeds in self._own if speeds.measured), key=_reference_s)
        self._usual = measured[(len(measured) - 1) // 2] if measured else self._usual
        usual_s = _reference_s(self._usual)
        for place, own in enumerate(self._own):
            own_s = self._pooled_s[place] = _reference_s(own)
            speeds = self._usual if not own.measured or _alike(own_s, usual_s) else own
            self.prefill_s[place] = speeds.prefill_s
            self.prefill_s_per_token[place] = speeds.prefill_s_per_token
            self.prefill_s_per_pair[place] = speeds.prefill_s_per_pair
            self.decode_s[place] = speeds.decode_s


def _reference_s(speeds: Speeds) -> float:
    return speeds.seconds_to_prefill(REFERENCE_TOKENS, 0)


def _alike(one_s: float, other_s: float) -> bool:
    return one_s <= ALIKE * other_s and other_s <= ALIKE * one_s
