"""When predictions and reports disagree so often that the index must have drifted."""

from __future__ import annotations

from router.prefixes.agreement import Agreement


def test_a_few_disagreements_are_tolerated() -> None:
    agreement = Agreement(interval_s=10.0)
    assert not any(agreement.drifted(16, 0 if n % 5 == 0 else 16, False, now=0.0) for n in range(100))


def test_eight_broken_promises_among_the_last_thirty_two_are_drift() -> None:
    agreement = Agreement(interval_s=10.0)
    verdicts = [agreement.drifted(16, 0, False, now=0.0) for _ in range(8)]
    assert verdicts == [False] * 7 + [True]


def test_more_than_was_promised_is_no_drift_while_the_index_knows_of_it_by_now() -> None:
    agreement = Agreement(interval_s=10.0)
    assert not any(agreement.drifted(0, 16, False, now=0.0) for _ in range(100))


def test_what_cannot_be_is_drift_the_first_time_but_at_most_once_an_interval() -> None:
    agreement = Agreement(interval_s=10.0)
    assert [agreement.drifted(16, 16, True, now) for now in (0.0, 9.0, 10.0)] == [True, False, True]


def test_counting_begins_anew_and_an_interval_passes_before_the_next_verdict() -> None:
    agreement = Agreement(interval_s=10.0)
    for _ in range(8):
        agreement.drifted(16, 0, False, now=0.0)
    assert not any(agreement.drifted(16, 0, False, now=9.0) for _ in range(32))
    assert agreement.drifted(16, 0, False, now=10.0)
