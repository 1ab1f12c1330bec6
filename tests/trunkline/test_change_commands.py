"""`trunkline scale`, `drain` and `upgrade`: what they ask of a deployment, what they wait for, what they print."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from controller.config import DeploymentConfig
from controller.status import DeploymentStatus, Phase
from protocol.membership import DeploymentView, ReplicaInfo, ReplicaState, ServedModel
from trunkline import change
from trunkline.cli import main

READY = ReplicaInfo("replica-0", ReplicaState.READY, 1, serves="v1")
STARTING = ReplicaInfo("replica-1", ReplicaState.STARTING, 1, serves="v1")
VIEW = DeploymentView()
MODELS = (ServedModel("a", "/a", "v1", 1), ServedModel("b", "/b", "v2", 1))
ONE = DeploymentStatus(Phase.READY, (READY,), MODELS, VIEW)
TWO = replace(ONE, replicas=(READY, replace(STARTING, state=ReplicaState.READY)))
UPGRADING = replace(ONE, view=replace(VIEW, upgrading=True))
TAKEN_BACK = replace(ONE, view=replace(VIEW, upgrade_error="replica-2: out of memory"))


class Running:
    """A deployment that shows its statuses one after the other."""

    def __init__(self, *statuses: DeploymentStatus) -> None:
        self.asked: list[object] = []
        self._statuses = statuses

    async def scale(self, num_replicas: int, model: str | None) -> None:
        self.asked.append(num_replicas if model is None else (model, num_replicas))

    async def drain(self, replica: str) -> None:
        self.asked.append(replica)

    async def upgrade(self, config: DeploymentConfig) -> None:
        self.asked.append(config.models[0].max_num_seqs)

    async def statuses(self) -> AsyncIterator[DeploymentStatus]:
        for status in self._statuses:
            self.asked.append(status.num_ready)
            yield status


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Running:
    deployment = Running(*request.param)

    @contextmanager
    def found(address: str | None) -> Iterator[Running]:
        yield deployment

    monkeypatch.setattr(change, "running_deployment", found)
    return deployment


def shows(*statuses: DeploymentStatus) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("running", [statuses], indirect=True)


@shows(ONE, replace(ONE, replicas=(READY, STARTING)), TWO, ONE)
def test_scale_waits_until_all_are_ready(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "2"]) == 0
    assert running.asked == [2, 1, 1, 2]
    assert capsys.readouterr().out == "2 replicas are ready.\n"


@shows(
    ONE, TWO, replace(TWO, replicas=(*TWO.replicas, replace(STARTING, replica_id="replica-2", serves="v2")))
)
def test_scaling_one_model_does_not_wait_for_another(running: Running) -> None:
    assert main(["scale", "2", "--model", "a"]) == 0
    assert running.asked == [("a", 2), 1, 2]


@shows(ONE)
def test_scale_without_waiting_only_asks(running: Running) -> None:
    assert main(["scale", "2", "--no-wait"]) == 0 and running.asked == [2]


@shows(ONE)
def test_a_deployment_that_ends_meanwhile_is_an_error(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scale", "2"]) == 2
    assert "stopped meanwhile" in capsys.readouterr().err


@shows()
def test_drain_names_the_replica(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drain", "replica-0"]) == 0 and running.asked == ["replica-0"]
    assert "replica-0 is gone" in capsys.readouterr().out


@shows(UPGRADING, TAKEN_BACK)
def test_an_upgrade_that_is_taken_back_fails_and_says_why(
    running: Running, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "new.yaml").write_text("max_num_seqs: 7\n")
    assert main(["upgrade", str(tmp_path / "new.yaml")]) == 1
    assert running.asked == [7, 1, 1]
    assert capsys.readouterr().out == "The upgrade has been taken back: replica-2: out of memory\n"


@shows(UPGRADING, ONE)
def test_an_upgrade_that_is_through_says_so(
    running: Running, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "new.yaml").write_text("max_num_seqs: 7\n")
    assert main(["upgrade", str(tmp_path / "new.yaml")]) == 0
    assert capsys.readouterr().out == "The upgrade is through.\n"
