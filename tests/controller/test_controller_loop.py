"""The reconcile loop over a launcher in memory: starting, healing, adopting, stopping."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from controller.status import Phase
from controller.unit import StartFailed
from protocol.membership import ReplicaInfo, ReplicaState

if TYPE_CHECKING:
    from tests.controller.conftest import Scene


async def replica(scene: Scene) -> ReplicaInfo:
    membership = await scene.controller.membership(None)
    return membership.replicas[0]


async def test_starts_what_is_wanted_and_publishes_it(scene: Scene) -> None:
    scene.start(replicas=2)
    await scene.settle()
    _, status = await scene.controller.status(None)
    assert status.phase is Phase.READY and status.num_ready == 2
    assert set(scene.launcher.units) == {"replica-0.1", "replica-1.1", "router-0.1"}


async def test_says_what_a_start_waits_for(scene: Scene) -> None:
    scene.launcher.held = {"replica-0.1"}
    scene.start()
    await scene.settle()
    assert ((await replica(scene)).state, (await replica(scene)).detail) == (
        ReplicaState.STARTING,
        "warms up",
    )


async def test_a_long_poll_returns_at_the_first_change(scene: Scene) -> None:
    scene.launcher.held = {"replica-0.1"}
    scene.start()
    await scene.settle()
    first = await scene.controller.membership(None)
    poll = asyncio.create_task(scene.controller.membership(first.version))
    await scene.settle()
    assert not poll.done()
    scene.launcher.units["replica-0.1"].ready.set()
    second = await poll
    assert second.version != first.version and second.replicas[0].state is ReplicaState.READY


async def test_a_death_is_cleaned_up_shown_and_healed_with_a_new_incarnation(scene: Scene) -> None:
    scene.launcher.held = {"replica-0.2"}
    scene.start()
    await scene.settle()
    scene.launcher.units["replica-0.1"].died.set_result("rank 1 died: out of memory")
    await scene.settle()
    assert scene.launcher.log[-1] == "kill replica-0.1"
    info = await replica(scene)
    assert (info.state, info.incarnation) == (ReplicaState.STARTING, 2)
    assert info.detail == "rank 1 died: out of memory" and info.host is None


async def test_the_reason_of_a_death_is_gone_once_it_is_healed(scene: Scene) -> None:
    scene.start()
    await scene.settle()
    scene.launcher.units["replica-0.1"].died.set_result("out of memory")
    await scene.settle()
    info = await replica(scene)
    assert (info.state, info.incarnation, info.detail) == (ReplicaState.READY, 2, "")


async def test_a_crash_loop_backs_off(scene: Scene) -> None:
    scene.launcher.fails = {f"replica-0.{n}": StartFailed("no") for n in (1, 2)}
    scene.start()
    await scene.settle()
    assert "replica-0.3" not in scene.launcher.units
    assert (await replica(scene)).state is ReplicaState.FAILED


async def test_what_cannot_be_cured_is_said_and_left(scene: Scene) -> None:
    scene.launcher.fails = {"replica-0.1": StartFailed("5 heads do not divide by 2", hopeless=True)}
    scene.start()
    await scene.settle()
    _, status = await scene.controller.status(None)
    assert (status.phase, status.detail) == (Phase.HOPELESS, "5 heads do not divide by 2")
    assert "replica-0.2" not in scene.launcher.units


async def test_what_was_ready_once_is_tried_again_whatever_it_says(scene: Scene) -> None:
    scene.launcher.fails = {"router-0.2": StartFailed("port taken", hopeless=True)}
    scene.start()
    await scene.settle()
    scene.launcher.units["router-0.1"].died.set_result("killed")
    await scene.settle()
    scene.now_s += 60.0
    assert scene.controller._plan().actions != ()


async def test_a_successor_adopts_what_is_whole_and_restarts_the_rest(scene: Scene) -> None:
    scene.start(replicas=2)
    await scene.settle()
    scene.launcher.units["replica-1.1"].died.set_result("killed meanwhile")
    await scene.crash()
    scene.start(replicas=2)
    await scene.settle()
    adopted, restarted = (await scene.controller.membership(None)).replicas
    assert adopted.incarnation == 1 and restarted.incarnation > 1
    assert scene.launcher.log[0] == "sweep but ['replica-0', 'router-0']"


async def test_a_successor_keeps_the_wanted_state_and_the_secrets(scene: Scene) -> None:
    scene.start(replicas=2)
    await scene.settle()
    await scene.crash()
    former, scene.secrets = scene.secrets, type(scene.secrets).generate()
    scene.start(replicas=1)
    await scene.settle()
    assert scene.store.state is not None and scene.store.state.secrets == former
    assert len((await scene.controller.membership(None)).replicas) == 2


async def test_a_stop_drains_in_order_and_ends_with_nothing(scene: Scene) -> None:
    scene.start()
    await scene.settle()
    await scene.controller.stop(5.0)
    await scene.running
    assert scene.launcher.log[1:] == [
        "drain router-0.1",
        "kill router-0.1",
        "drain replica-0.1",
        "kill replica-0.1",
    ]
    assert scene.store.state is None
    assert (await scene.controller.status(None))[1].phase is Phase.STOPPED


async def test_a_second_stop_without_grace_cuts_the_drain_short(scene: Scene) -> None:
    scene.start()
    await scene.settle()
    scene.launcher.units["router-0.1"].drain_forever = True
    slow = asyncio.create_task(scene.controller.stop(3600.0))
    await scene.settle()
    assert not slow.done()
    await scene.controller.stop(0.0)
    await slow


async def test_a_successor_goes_on_stopping(scene: Scene) -> None:
    scene.start()
    await scene.settle()
    scene.launcher.units["router-0.1"].drain_forever = True
    stop = asyncio.create_task(scene.controller.stop(3600.0))
    await scene.settle()
    await scene.crash()
    stop.cancel()
    scene.start()
    await scene.running
    assert scene.store.state is None and "replica-0.2" not in scene.launcher.units


async def test_a_replica_that_starts_is_not_waited_for_by_a_stop(scene: Scene) -> None:
    scene.launcher.held = {"replica-0.1"}
    scene.start()
    await scene.settle()
    await scene.controller.stop(3600.0)
    await scene.running
    assert scene.launcher.log[-1] == "kill replica-0.1"
