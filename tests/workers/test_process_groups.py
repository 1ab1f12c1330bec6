"""What torch is told when a group of GPUs is made, and that nobody else is told it."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest
from torch import distributed
from torch._C._distributed_c10d import HashStore

from workers.process_groups import make_nccl

NAME = "TORCH_NCCL_ASYNC_ERROR_HANDLING"


class FakeNccl:
    """Reads the environment as the real one does."""

    class Options:
        _timeout = timedelta()

    def __init__(self, store: object, rank: int, size: int, options: Options) -> None:
        self.error_handling = os.environ.get(NAME)
        self.timeout = options._timeout


@pytest.fixture(autouse=True)
def nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "ProcessGroupNCCL", FakeNccl, raising=False)
    monkeypatch.delenv(NAME, raising=False)


def test_a_hung_exchange_ends_the_group_and_not_the_process() -> None:
    made = make_nccl(HashStore(), 0, 2, timedelta(seconds=7))
    assert (made.error_handling, made.timeout) == ("2", timedelta(seconds=7))
    assert NAME not in os.environ, "other groups of this process keep their ways"


def test_the_users_word_on_hung_exchanges_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "1")
    assert make_nccl(HashStore(), 0, 2, timedelta(seconds=7)).error_handling == "1"
    assert os.environ[NAME] == "1"
