"""What a replica's report and a dispatch to it become in the columns that the policy reads."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.deployment_secrets import DeploymentSecrets
from protocol.messages import Identity, Load
from protocol.speeds import Speeds
from router.deployment import Deployment
from router.replicas.replica_work import ReplicaWork
from router.routing.prefill_board import PrefillBoard

LOAD = Load(
    num_running=2,
    num_waiting=3,
    num_blocks=100,
    num_used_blocks=20,
    num_cached_blocks=50,
    waiting_prefill_tokens=400,
    speeds=Speeds(0.0, 0.001, 0.0, 0.05, 0.0),
)


@pytest.fixture
def board() -> PrefillBoard:
    return PrefillBoard()


@pytest.fixture
def work(board: PrefillBoard) -> ReplicaWork:
    deployment = Deployment(
        Identity("model", "digest", "digest", block_size=16), DeploymentSecrets.generate()
    )
    work = ReplicaWork("a", deployment, board, 60.0, lambda hung_s: None, lambda: 0.0)
    work.connected()
    return work


def test_blocks_that_hold_nothing_less_what_waits_are_free_tokens(
    work: ReplicaWork, board: PrefillBoard
) -> None:
    work.report(LOAD)
    assert board.columns(0.0).free_tokens == [30 * 16 - 400]
    work.report(replace(LOAD, num_cached_blocks=80))
    assert board.columns(0.0).free_tokens == [0]


def test_what_nobody_here_sent_is_of_as_many_others_as_wait_and_one_that_runs(
    work: ReplicaWork, board: PrefillBoard
) -> None:
    work.report(LOAD)
    loads = board.columns(0.0)
    assert (loads.others_prefill_s, loads.num_others) == ([pytest.approx(0.4)], [4])
    assert loads.num_in_flight == [5]
