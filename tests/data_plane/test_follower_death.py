"""A follower rank's death is told, whatever else fails then: whoever waits for it would wait for ever."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from protocol.deployment_secrets import DeploymentSecrets
from workers.engine_config import EngineConfig
from workers.local_ranks import LocalRanks
from workers.worker import Worker, WorkerDied
from workers.worker_config import WorkerConfig


class Ending:
    """A follower and a runner in one, which end as they are told."""

    def __init__(self, following: Exception | None, closing: Exception | None) -> None:
        self._errors = {"follow": following, "close": closing}

    def _end(self, what: str) -> None:
        error = self._errors[what]
        if error is not None:
            raise error

    def follow(self, runner: Any) -> None:
        self._end("follow")

    def close(self) -> None:
        self._end("close")


@pytest.fixture
def worker() -> Worker:
    return Worker(WorkerConfig("r", 0, 1, EngineConfig(), DeploymentSecrets.generate()), "127.0.0.1")


def end(worker: Worker, following: Exception | None, closing: Exception | None) -> None:
    ending: Any = Ending(following, closing)
    worker._until_the_end(ending, ending)


def test_a_runner_that_cannot_be_closed_hides_no_death(worker: Worker) -> None:
    end(worker, RuntimeError("an illegal memory access"), RuntimeError("no device to close"))
    with pytest.raises(WorkerDied, match=r"(?s)an illegal memory access.*no device to close"):
        worker.run()


def test_a_runner_that_cannot_be_closed_is_a_death_by_itself(worker: Worker) -> None:
    end(worker, None, RuntimeError("no device to close"))
    with pytest.raises(WorkerDied, match="no device to close"):
        worker.run()


def test_a_follower_that_ends_well_is_no_death(worker: Worker) -> None:
    end(worker, None, None)
    worker.run()


def test_followers_of_an_engine_that_cannot_be_closed_are_ended() -> None:
    ranks, ended = object.__new__(LocalRanks), list[str]()
    ranks.engine = Ending(None, RuntimeError("no device to close"))  # type: ignore[assignment]
    follower: Any = SimpleNamespace(
        join=lambda _: None, is_alive=lambda: False, close=lambda: ended.append("1")
    )
    ranks._followers = [follower]
    with pytest.raises(RuntimeError, match="no device to close"):
        ranks.close()
    assert ended == ["1"]
