"""A deployment on a real Ray, its actors fakes without a model: launched, crashed, healed, adopted, stopped."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util import placement_group_table

from controller.config import DeploymentConfig
from controller.deployment import Deployment
from controller.launcher import Actors
from controller.names import CONTROLLER, NAMESPACE
from controller.status import DeploymentStatus, Phase
from protocol.errors import InvalidRequest
from protocol.membership import ReplicaInfo, ReplicaState

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
Launch = Callable[..., Deployment]
Holds = Callable[[DeploymentStatus], bool]


@pytest.fixture
async def launch(
    fake_config: Callable[..., DeploymentConfig], fake_actors: tuple[type, type]
) -> AsyncIterator[Launch]:
    def begin(**keys: Any) -> Deployment:
        return Deployment.launch(fake_config(**keys), Actors(*fake_actors))

    yield begin
    if (left := Deployment.find()) is not None:
        await left.stop(0.0)
        await until_gone()


async def until(deployment: Deployment, holds: Holds) -> DeploymentStatus:
    async with asyncio.timeout(60):
        async for status in deployment.statuses():
            if holds(status):
                return status
    raise AssertionError("the deployment has ended")


async def until_gone() -> None:
    """The controller leaves a moment after everything else."""
    async with asyncio.timeout(30):
        while Deployment.find() is not None:
            await asyncio.sleep(0.02)


def is_ready(status: DeploymentStatus) -> bool:
    return status.phase is Phase.READY


def is_healed(status: DeploymentStatus) -> bool:
    return is_ready(status) and status.replicas[0].incarnation > 1


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pids(info: ReplicaInfo) -> list[int]:
    return [worker.pid for worker in info.workers]


def placed_groups() -> list[str]:
    tables = placement_group_table().values()
    return sorted(table["name"] for table in tables if table["state"] != "REMOVED")


async def test_a_replica_is_a_placement_group_with_a_worker_a_rank(launch: Launch) -> None:
    status = await until(launch(replicas=1, tensor_parallel_size=2), is_ready)
    (replica,) = status.replicas
    assert [worker.rank for worker in replica.workers] == [0, 1]
    assert (replica.host, replica.port) == ("127.0.0.1", 1000)
    assert placed_groups() == ["trunkline.replica-0.1"]
    worker: Any = ray.get_actor("replica-0.1.rank-1", NAMESPACE)
    assert await worker.threads.remote() == "1"


async def test_ranks_follow_the_devices_and_a_successor_finds_them_so(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "backwards").touch()
    deployment = launch(replicas=1, tensor_parallel_size=2)
    before = (await until(deployment, is_ready)).replicas[0]
    assert [(worker.rank, worker.devices) for worker in before.workers] == [(0, (8,)), (1, (9,))]
    first: Any = ray.get_actor("replica-0.1.rank-1", NAMESPACE)
    assert (await first.info.remote()).rank == 0
    controller: Any = ray.get_actor(CONTROLLER, NAMESPACE)
    os.kill(await controller.pid.remote(), signal.SIGKILL)
    assert (await until(deployment, is_ready)).replicas[0] == before


async def test_a_killed_rank_takes_its_replica_down_and_a_new_incarnation_comes(launch: Launch) -> None:
    deployment = launch(replicas=1, tensor_parallel_size=2)
    before = (await until(deployment, is_ready)).replicas[0]
    os.kill(pids(before)[1], signal.SIGKILL)
    after = (await until(deployment, is_healed)).replicas[0]
    assert after.incarnation == 2 and not set(pids(after)) & set(pids(before))
    assert not [pid for pid in pids(before) if alive(pid)]
    assert placed_groups() == ["trunkline.replica-0.2"]


async def test_the_first_dead_ranks_traceback_is_shown(launch: Launch) -> None:
    deployment = launch(replicas=1, tensor_parallel_size=2)
    await until(deployment, is_ready)
    worker: Any = ray.get_actor("replica-0.1.rank-1", NAMESPACE)
    await worker.fail.remote("the step has failed in layer 3")
    status = await until(deployment, lambda status: status.replicas[0].detail != "")
    assert "rank 1 of replica-0" in status.replicas[0].detail
    assert "the step has failed in layer 3" in status.replicas[0].detail


async def test_a_rank_that_stands_still_is_taken_for_dead(launch: Launch) -> None:
    deployment = launch(replicas=1, tensor_parallel_size=2, silent_after_s=2.0)
    before = (await until(deployment, is_ready)).replicas[0]
    os.kill(pids(before)[1], signal.SIGSTOP)
    status = await until(deployment, lambda status: status.replicas[0].detail != "")
    assert status.replicas[0].detail == "rank 1 of replica-0 has not answered for 2 s"
    await until(deployment, is_healed)
    assert not [pid for pid in pids(before) if alive(pid)]


async def test_a_killed_controller_comes_back_and_adopts(launch: Launch) -> None:
    deployment = launch(replicas=1)
    before = await until(deployment, is_ready)
    controller: Any = ray.get_actor(CONTROLLER, NAMESPACE)
    former_pid = await controller.pid.remote()
    os.kill(former_pid, signal.SIGKILL)
    after = await until(deployment, is_ready)
    assert await controller.pid.remote() != former_pid
    assert after.replicas == before.replicas and after.routers == before.routers
    os.kill(pids(after.replicas[0])[0], signal.SIGKILL)
    assert (await until(deployment, is_healed)).replicas[0].incarnation == 2


async def test_a_dead_router_is_replaced(launch: Launch) -> None:
    deployment = launch(replicas=1)
    before = (await until(deployment, is_ready)).routers[0]
    os.kill(pids(before)[0], signal.SIGKILL)
    status = await until(deployment, lambda s: is_ready(s) and s.routers[0].incarnation == 2)
    assert pids(status.routers[0]) != pids(before)


async def test_a_model_that_cannot_be_served_is_said_in_one_sentence(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "hopeless").touch()
    status = await until(launch(replicas=1), lambda status: status.phase is Phase.HOPELESS)
    assert status.detail == "this model cannot be served"


async def test_a_start_that_fails_is_tried_again(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "crash").touch()
    deployment = launch(replicas=1)
    status = await until(deployment, lambda status: status.replicas[0].state is ReplicaState.FAILED)
    assert "the first start is bound to fail" in status.replicas[0].detail
    (tmp_path / "crash").unlink()
    assert (await until(deployment, is_healed)).replicas[0].detail == ""


async def test_a_replica_without_a_place_says_what_it_waits_for(launch: Launch) -> None:
    deployment = launch(replicas=1, worker={"num_cpus": 100})
    status = await until(deployment, lambda status: "waits for" in status.replicas[0].detail)
    assert status.replicas[0].detail == "waits for 100 CPU on one node; the largest free is 8"


async def test_a_stop_asks_the_workers_and_leaves_nothing(launch: Launch, tmp_path: Path) -> None:
    deployment = launch(replicas=2)
    status = await until(deployment, is_ready)
    await deployment.stop(5.0)
    await until_gone()
    units = (*status.replicas, *status.routers)
    assert not [pid for unit in units for pid in pids(unit) if alive(pid)]
    assert (ray.util.list_named_actors(), placed_groups()) == ([], [])
    assert (tmp_path / "stopped-replica-0").exists()


async def test_a_deployment_is_scaled_and_a_replica_drained(launch: Launch, tmp_path: Path) -> None:
    deployment = launch(replicas=1)
    await until(deployment, is_ready)
    await deployment.scale(2)
    await until(deployment, lambda status: status.num_ready == 2)
    await deployment.drain("replica-0")
    assert (tmp_path / "stopped-replica-0").exists()
    status = await until(deployment, lambda status: status.num_ready == 2)
    assert [replica.replica_id for replica in status.replicas] == ["replica-1", "replica-2"]
    assert placed_groups() == ["trunkline.replica-1.1", "trunkline.replica-2.1"]


async def test_a_mistake_in_what_is_asked_comes_back_as_one(launch: Launch) -> None:
    deployment = launch(replicas=1)
    await until(deployment, is_ready)
    with pytest.raises(InvalidRequest, match="there are replica-0"):
        await deployment.drain("replica-5")


async def test_an_upgrade_that_cannot_start_leaves_what_runs(
    launch: Launch, fake_config: Callable[..., DeploymentConfig], tmp_path: Path
) -> None:
    deployment = launch(replicas=1)
    before = await until(deployment, is_ready)
    (tmp_path / "hopeless").touch()
    await deployment.upgrade(fake_config(replicas=1, max_num_seqs=8))
    status = await until(deployment, lambda status: not status.view.upgrading)
    assert status.view.upgrade_error == "replica-1: this model cannot be served"
    (tmp_path / "hopeless").unlink()
    await deployment.upgrade(fake_config(replicas=1, max_num_seqs=8))
    after = await until(deployment, lambda status: not status.view.upgrading)
    assert after.view.upgrade_error == "" and after.num_ready == 1
    assert not set(pids(after.replicas[0])) & set(pids(before.replicas[0]))


async def test_a_second_deployment_on_one_ray_is_refused(launch: Launch) -> None:
    await until(launch(replicas=1), is_ready)
    with pytest.raises(InvalidRequest, match="already running"):
        launch(replicas=1)
