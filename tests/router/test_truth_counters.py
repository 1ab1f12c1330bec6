"""What a router counts of its predictions: nothing that is wrong one way hides what is wrong the other way."""

from __future__ import annotations

from router.requests.routed_request import Decision, Reason
from router.router_status import RouterCounters


def decision(matched: int, best: int) -> Decision:
    return Decision("a", matched, 1.0, Reason.PREFIX, best)


def test_wrong_predictions_do_not_make_up_for_each_other() -> None:
    counters = RouterCounters()
    counters.compare(100, decision(64, 64), actual=32)
    counters.compare(100, decision(0, 0), actual=32)
    assert counters.predicted_cached_tokens == counters.actual_cached_tokens == 64
    assert counters.mispredicted_tokens == 64


def test_regret_is_what_another_replica_had_cached_and_finding_more_does_not_undo_it() -> None:
    counters = RouterCounters()
    counters.compare(100, decision(16, 64), actual=16)
    counters.compare(100, decision(16, 16), actual=48)
    assert counters.regret_tokens == 48
