"""Rank 0 and its followers: the same plans, in order, and nobody in without the key."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from protocol.errors import ProtocolError
from protocol.frames import receive_frame, send_frame
from protocol.sampling import SamplingParams
from workers.rank_link import LeadingRunner, PlanFollower, PlanListener
from workers.step_plan import Chunk, RowStart, SampledTokens, StepPlan

KEY = b"k" * 32
PLAN = StepPlan(
    1,
    (2,),
    (RowStart(0, b"\1\0\0\0", b"", SamplingParams(temperature=0.5, stop=("x",)), 7),),
    ((3, 4),),
    ((0, (5, 6)), (1, (7,))),
    b"\1\0\0\0",
    b"\x09\0\0\0",
    (Chunk(0, 0, b"\1\0\0\0\2\0\0\0", True),),
)


@dataclass
class RecordingRunner:
    facts: Any = None
    plans: list[StepPlan] = field(default_factory=list)
    closed: bool = False

    def launch(self, plan: StepPlan) -> SampledTokens:
        self.plans.append(plan)
        return SampledTokens((len(self.plans),))

    def close(self) -> None:
        self.closed = True


class Followers:
    """Two follower ranks on threads, which come in in the wrong order."""

    def __init__(self, port: int) -> None:
        self.runners = {rank: RecordingRunner() for rank in (2, 1)}
        self.threads = [threading.Thread(target=self._follow, args=(rank, port)) for rank in (2, 1)]
        for thread in self.threads:
            thread.start()

    def _follow(self, rank: int, port: int) -> None:
        follower = PlanFollower("127.0.0.1", port, KEY, rank, timeout_s=10)
        follower.follow(self.runners[rank])
        follower.close()


@pytest.fixture
def listener() -> Iterator[PlanListener]:
    with PlanListener("127.0.0.1", KEY) as opened:
        yield opened


def test_every_rank_executes_the_same_plans_in_order(listener: PlanListener) -> None:
    followers = Followers(listener.port)
    own = RecordingRunner()
    leader = LeadingRunner(own, listener.accept(2, timeout_s=10))
    results = [leader.launch(PLAN), leader.launch(PLAN)]
    leader.close()
    for thread in followers.threads:
        thread.join(10)
    assert [runner.plans for runner in (own, *followers.runners.values())] == [[PLAN, PLAN]] * 3
    assert [result.wait().token_ids for result in results] == [(1,), (2,)]
    assert own.closed


def test_a_stranger_is_not_let_in(listener: PlanListener) -> None:
    with socket.create_connection(("127.0.0.1", listener.port)) as stranger:
        threading.Thread(
            target=lambda: (receive_frame(stranger), send_frame(stranger, b"\0\1" + b"x" * 32))
        ).start()
        with pytest.raises(ProtocolError, match="cluster's key"):
            listener.accept(1, timeout_s=10)


def test_a_rank_that_never_comes_is_not_waited_for_forever(listener: PlanListener) -> None:
    with pytest.raises(TimeoutError):
        listener.accept(1, timeout_s=0.05)


def test_a_follower_that_died_is_noticed_by_the_leader(listener: PlanListener) -> None:
    doors: list[socket.socket] = []
    accepting = threading.Thread(target=lambda: doors.extend(listener.accept(1, timeout_s=10)))
    accepting.start()
    follower = PlanFollower("127.0.0.1", listener.port, KEY, 1, timeout_s=10)
    accepting.join()
    leader = LeadingRunner(RecordingRunner(), doors)
    follower.close()
    with pytest.raises(OSError):
        for _ in range(10_000):
            leader.launch(PLAN)
    leader.close()


def test_closing_a_follower_ends_its_following(listener: PlanListener) -> None:
    doors: list[socket.socket] = []
    accepting = threading.Thread(target=lambda: doors.extend(listener.accept(1, timeout_s=10)))
    accepting.start()
    follower = PlanFollower("127.0.0.1", listener.port, KEY, 1, timeout_s=10)
    accepting.join()
    following = threading.Thread(target=follower.follow, args=(RecordingRunner(),))
    following.start()
    follower.close()
    following.join(10)
    assert not following.is_alive()
    doors[0].close()
