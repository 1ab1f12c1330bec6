"""The options of `trunkline simulate` for routers, lag and slow replicas."""

from __future__ import annotations

import argparse

import pytest

from protocol.errors import InvalidRequest
from simulator.exact import ExactReplicas
from simulator.simulation import Deployment, Slowdown
from trunkline.simulated_conditions import with_conditions

FLEET = Deployment(4, 100)


def conditions(
    routers: int = 1, event_lag: str | None = None, slow: tuple[str, ...] = ()
) -> argparse.Namespace:
    return argparse.Namespace(routers=routers, event_lag=event_lag, slow=list(slow))


def test_nothing_is_the_default() -> None:
    assert with_conditions(FLEET, conditions()) == FLEET


def test_conditions_are_read() -> None:
    deployment = with_conditions(FLEET, conditions(3, "50ms", ("0:3", "3:1.5@10s")))
    assert (deployment.num_routers, deployment.event_lag_s) == (3, 0.05)
    assert deployment.slowdowns == (Slowdown(0, 3.0), Slowdown(3, 1.5, 10.0))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (conditions(0), "--routers must be at least 1, not 0"),
        (conditions(event_lag="soon"), "--event-lag must be a time as 2s or 500ms, not 'soon'"),
        (conditions(slow=("4:3",)), "a replica from 0 to 3, not '4:3'"),
        (conditions(slow=("1:0",)), "a replica from 0 to 3, not '1:0'"),
        (conditions(slow=("1:2@x",)), "--slow must be a time as 2s or 500ms, not 'x'"),
    ],
)
def test_a_mistake_is_one_sentence(options: argparse.Namespace, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        with_conditions(FLEET, options)
    assert sentence in str(raised.value)


def test_exact_replicas_tell_at_once() -> None:
    exact = Deployment(2, 100, make_replicas=ExactReplicas())
    assert with_conditions(exact, conditions(routers=3)).num_routers == 3
    with pytest.raises(InvalidRequest, match="--event-lag needs --fidelity fluid"):
        with_conditions(exact, conditions(event_lag="1s"))
