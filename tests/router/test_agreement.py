"""When predictions and reports disagree so often that the index must have drifted."""

from __future__ import annotations

from router.agreement import Agreement


def test_a_few_disagreements_are_tolerated() -> None:
    agreement = Agreement(interval_s=10.0)
    assert not any(agreement.drifted(16, 0 if n % 5 == 0 else 16, now=0.0) for n in range(100))


def test_eight_wrong_of_the_last_thirty_two_are_drift() -> None:
    agreement = Agreement(interval_s=10.0)
    verdicts = [agreement.drifted(16, 0, now=0.0) for _ in range(8)]
    assert verdicts == [False] * 7 + [True]


def test_counting_begins_anew_and_an_interval_passes_before_the_next_verdict() -> None:
    agreement = Agreement(interval_s=10.0)
    for _ in range(8):
        agreement.drifted(16, 0, now=0.0)
    assert not any(agreement.drifted(16, 0, now=9.0) for _ in range(32))
    assert agreement.drifted(16, 0, now=10.0)
