"""A running deployment is scaled, drained and upgraded, over a launcher in memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from controller.config_file import build_config
from controller.status import DeploymentStatus
from controller.unit import StartFailed
from protocol.demand import RouterDemand
from protocol.deployment_secrets import DeploymentSecrets
from protocol.errors import InvalidRequest
from protocol.membership import ReplicaState

if TYPE_CHECKING:
    from tests.controller.conftest import Scene


async def status(scene: Scene) -> DeploymentStatus:
    await scene.settle()
    return (await scene.controller.status(None))[1]


async def ready(scene: Scene) -> list[str]:
    return [
        f"{each.replica_id}.{each.incarnation}"
        for each in (await status(scene)).replicas
        if each.state is ReplicaState.READY
    ]


async def routers(scene: Scene, until: str) -> list[str]:
    """As soon as one of that name is there."""
    version: int | None = None
    names: list[str] = []
    while until not in names:
        version, seen = await scene.controller.status(version)
        names = [each.replica_id for each in seen.routers]
    return [each.replica_id for each in (await status(scene)).routers]


async def texts(scene: Scene) -> list[str]:
    return [f"{event.unit} {event.text}".strip() for event in (await status(scene)).view.events]


async def test_scaling_up_starts_more_and_down_drains_some(scene: Scene) -> None:
    scene.start(replicas=1)
    await scene.settle()
    await scene.controller.scale(3)
    assert await ready(scene) == ["replica-0.1", "replica-1.1", "replica-2.1"]
    await scene.controller.scale(2)
    assert await ready(scene) == ["replica-0.1", "replica-1.1"]
    assert scene.launcher.log[-2:] == ["drain replica-2.1", "kill replica-2.1"]
    assert "sapling scales from 1 to 3 replicas" in await texts(scene)


async def test_a_scale_outlives_the_controller(scene: Scene) -> None:
    scene.start(replicas=1)
    await scene.settle()
    await scene.controller.scale(2)
    await scene.settle()
    await scene.crash()
    scene.start(replicas=1)
    assert await ready(scene) == ["replica-0.1", "replica-1.1"]


async def test_draining_returns_when_the_replica_is_gone_and_another_came(scene: Scene) -> None:
    scene.start(replicas=2)
    await scene.settle()
    await scene.controller.drain("replica-0")
    assert await ready(scene) == ["replica-1.1", "replica-2.1"]


async def test_a_replica_ends_only_when_no_router_has_anything_there(scene: Scene) -> None:
    scene.start(replicas=2)
    await scene.settle()
    router: Any = scene.launcher.units["router-0.1"]
    router.occupied = asyncio.Event()
    drain = asyncio.create_task(scene.controller.drain("replica-0"))
    await scene.settle()
    assert scene.launcher.log[-1] == "router-0.1 vacates replica-0" and not drain.done()
    router.occupied.set()
    await drain
    assert scene.launcher.log[-2:] == ["drain replica-0.1", "kill replica-0.1"]


async def test_a_drained_replica_that_dies_is_not_waited_for(scene: Scene) -> None:
    scene.start(replicas=2)
    await scene.settle()
    router: Any = scene.launcher.units["router-0.1"]
    router.occupied = asyncio.Event()
    drain = asyncio.create_task(scene.controller.drain("replica-0"))
    await scene.settle()
    scene.launcher.units["replica-0.1"].died.set_result("killed")
    await drain


async def test_a_name_that_is_used_again_counts_its_incarnations_on(scene: Scene) -> None:
    scene.start(replicas=2)
    await scene.settle()
    await scene.controller.scale(1)
    await scene.settle()
    await scene.crash()
    scene.start(replicas=2)
    await scene.settle()
    await scene.controller.scale(2)
    assert await ready(scene) == ["replica-0.1", "replica-1.2"]


async def test_a_drain_is_gone_on_with_by_a_successor(scene: Scene) -> None:
    scene.start(replicas=1)
    await scene.settle()
    scene.launcher.units["replica-0.1"].drain_forever = True
    drain = asyncio.create_task(scene.controller.drain("replica-0"))
    await scene.settle()
    await scene.crash()
    await asyncio.gather(drain, return_exceptions=True)
    scene.start(replicas=1)
    assert await ready(scene) == ["replica-1.1"]
    assert "drain replica-0.1" in scene.launcher.log
    assert "router-0.1 vacates replica-0" in scene.launcher.log


@pytest.mark.parametrize("num_replicas", [-1, 1025])
async def test_a_number_of_replicas_that_cannot_be_is_refused(scene: Scene, num_replicas: int) -> None:
    scene.start(replicas=1)
    with pytest.raises(InvalidRequest, match="between 0 and 1024"):
        await scene.controller.scale(num_replicas)


async def test_draining_what_is_not_there_names_what_is(scene: Scene) -> None:
    scene.start(replicas=2)
    await scene.settle()
    with pytest.raises(InvalidRequest, match="there are replica-0, replica-1"):
        await scene.controller.drain("replica-7")


async def test_an_upgrade_replaces_every_replica_and_no_router(scene: Scene) -> None:
    scene.start(replicas=2)
    await scene.settle()
    await scene.controller.upgrade(build_config({"replicas": 2, "max_num_seqs": 8}))
    after = await status(scene)
    assert [each.replica_id for each in after.replicas] == ["replica-2", "replica-3"]
    assert (after.view.upgrading, after.routers[0].incarnation) == (False, 1)
    assert (await texts(scene))[-1] == "the upgrade is through"


async def test_whoever_asked_for_an_upgrade_sees_it_under_way_at_once(scene: Scene) -> None:
    scene.launcher.held = {"replica-1.1"}
    scene.start(replicas=1)
    await scene.settle()
    await scene.controller.upgrade(build_config({"replicas": 1, "max_num_seqs": 8}))
    assert (await scene.controller.status(None))[1].view.upgrading


async def test_an_upgrade_of_what_routers_are_told_replaces_them(scene: Scene) -> None:
    scene.start(replicas=1, routers={"count": 2})
    await scene.settle()
    await scene.controller.upgrade(build_config({"replicas": 1, "routers": {"count": 2}, "api_keys": ["k"]}))
    after = await status(scene)
    assert [each.incarnation for each in (*after.replicas, *after.routers)] == [1, 2, 2]


async def test_an_upgrade_to_what_runs_replaces_nothing(scene: Scene) -> None:
    scene.start(replicas=2)
    await scene.settle()
    await scene.controller.upgrade(build_config({"replicas": 2}))
    assert await ready(scene) == ["replica-0.1", "replica-1.1"] and not (await status(scene)).view.upgrading


async def test_an_upgrade_whose_first_replica_cannot_start_is_taken_back(scene: Scene) -> None:
    scene.launcher.fails = {"replica-2.1": StartFailed("65 heads do not divide by 2", hopeless=True)}
    scene.start(replicas=2)
    await scene.settle()
    await scene.controller.upgrade(build_config({"replicas": 2, "max_num_seqs": 8}))
    after = await status(scene)
    assert await ready(scene) == ["replica-0.1", "replica-1.1"]
    assert after.view.upgrade_error == "replica-2: 65 heads do not divide by 2" and not after.view.upgrading
    assert scene.store.state is not None and scene.store.state.config.models[0].max_num_seqs == 64


async def test_an_upgrade_that_fails_half_way_brings_the_old_ones_back(scene: Scene) -> None:
    scene.start(replicas=2)
    await scene.settle()
    scene.launcher.fails = {f"replica-2.{number}": StartFailed("out of memory") for number in (1, 2)}
    await scene.controller.upgrade(build_config({"replicas": 2, "max_num_seqs": 8, "upgrade": {"surge": 0}}))
    assert await ready(scene) == ["replica-0.1", "replica-1.2"]
    assert (await status(scene)).view.upgrade_error == "replica-2: out of memory"


async def test_one_failure_of_a_new_replica_is_no_reason_to_go_back(scene: Scene) -> None:
    scene.launcher.fails = {"replica-1.1": StartFailed("a hiccup")}
    scene.start(replicas=1)
    await scene.settle()
    await scene.controller.upgrade(build_config({"replicas": 1, "max_num_seqs": 8}))
    assert await ready(scene) == ["replica-1.2"] and (await status(scene)).view.upgrade_error == ""


async def test_a_successor_goes_on_with_an_upgrade(scene: Scene) -> None:
    scene.launcher.held = {"replica-2.1"}
    scene.start(replicas=2)
    await scene.settle()
    await scene.controller.upgrade(build_config({"replicas": 2, "max_num_seqs": 8}))
    await scene.settle()
    await scene.crash()
    scene.launcher.held = set()
    scene.start(replicas=2)
    after = await status(scene)
    assert not after.view.upgrading and {each.state for each in after.replicas} == {ReplicaState.READY}
    assert scene.store.state is not None
    assert len({unit.revision for unit in scene.store.state.units if "replica" in unit.unit}) == 1
    assert scene.store.state.config.models[0].max_num_seqs == 8


async def test_another_model_comes_under_the_same_name_beside_the_former(scene: Scene) -> None:
    scene.start(replicas=1, served_model_name="m")
    former = (await status(scene)).models[0]
    scene.launcher.units["replica-0.1"].drain_forever = True
    await scene.controller.upgrade(build_config({"replicas": 1, "model": "other", "served_model_name": "m"}))
    during = await status(scene)
    assert [(each.name, each.source, each.num_wanted, each.current) for each in during.models] == [
        ("m", "other", 1, True),
        ("m", "sapling", 0, False),
    ]
    old, new = during.replicas
    assert (old.state, old.serves) == (ReplicaState.DRAINING, former.version)
    assert (new.state, new.serves) == (ReplicaState.READY, during.models[0].version)


async def test_an_upgrade_to_another_secret_is_refused(scene: Scene) -> None:
    scene.secrets = DeploymentSecrets.derived("a" * 32)
    scene.start(replicas=1)
    await scene.controller.upgrade(build_config({"replicas": 1, "secret": "a" * 32}))
    with pytest.raises(InvalidRequest, match="cannot change the secret"):
        await scene.controller.upgrade(build_config({"replicas": 1, "secret": "b" * 32}))
    assert scene.store.state is not None and scene.store.state.config.secret is None


async def test_nothing_is_drained_before_every_router_takes_its_successor(scene: Scene) -> None:
    scene.start(replicas=1)
    await scene.settle()
    router: Any = scene.launcher.units["router-0.1"]
    router.meeting.clear()
    await scene.controller.upgrade(build_config({"replicas": 1, "max_num_seqs": 8}))
    assert await ready(scene) == ["replica-0.1", "replica-1.1"]
    router.meeting.set()
    assert await ready(scene) == ["replica-1.1"]


async def test_an_upgrade_whose_replicas_no_router_takes_is_taken_back(scene: Scene) -> None:
    scene.start(replicas=1)
    await scene.settle()
    router: Any = scene.launcher.units["router-0.1"]
    router.refusals = {f"replica-1.{number}": "tokenizer_digest differs" for number in (1, 2)}
    await scene.controller.upgrade(build_config({"replicas": 1, "max_num_seqs": 8}))
    assert await ready(scene) == ["replica-0.1"]
    assert (await status(scene)).view.upgrade_error == "replica-1: tokenizer_digest differs"
    assert "kill replica-1.2" in scene.launcher.log


async def test_a_router_that_does_not_answer_keeps_no_replica_out(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.tending.INTRODUCTION_S", 0.01)
    scene.start(replicas=1)
    await scene.settle()
    router: Any = scene.launcher.units["router-0.1"]
    router.meeting.clear()
    await scene.controller.upgrade(build_config({"replicas": 1, "max_num_seqs": 8}))
    while await ready(scene) != ["replica-1.1"]:
        await asyncio.sleep(0.01)


async def test_a_deployment_that_stops_takes_no_changes(scene: Scene) -> None:
    scene.start(replicas=1)
    await scene.settle()
    scene.launcher.units["router-0.1"].drain_forever = True
    stop = asyncio.create_task(scene.controller.stop(3600.0))
    await scene.settle()
    with pytest.raises(InvalidRequest, match="being stopped"):
        await scene.controller.scale(2)
    await scene.controller.stop(0.0)
    await stop


async def test_each_node_has_its_router_for_as_long_as_it_is_there(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.controller.NODES_INTERVAL_S", 0.01)
    scene.launcher.alive_nodes = ("a" * 56, "b" * 56)
    scene.start(replicas=1, routers={"per_node": True})
    assert await routers(scene, "router-bbbbbbbbbbbb") == ["router-aaaaaaaaaaaa", "router-bbbbbbbbbbbb"]
    scene.launcher.alive_nodes = ("b" * 56, "c" * 56)
    assert await routers(scene, "router-cccccccccccc") == ["router-bbbbbbbbbbbb", "router-cccccccccccc"]


async def test_the_replica_with_the_least_cache_of_its_own_goes_first(scene: Scene) -> None:
    scene.start(replicas=3)
    await scene.settle()
    router: Any = scene.launcher.units["router-0.1"]
    router.own = {"replica-0": 50, "replica-1": 3, "replica-2": 80}
    await scene.controller.scale(2)
    assert await ready(scene) == ["replica-0.1", "replica-2.1"]


AUTOSCALING = {"min_replicas": 0, "max_replicas": 4, "up_after_s": 10, "down_after_s": 100}


async def pass_time(scene: Scene, seconds: float) -> None:
    scene.now_s += seconds
    scene.controller._wake.set()
    await scene.settle()


async def test_replicas_follow_the_demand(scene: Scene) -> None:
    scene.start(replicas=1, autoscaling=AUTOSCALING)
    await scene.settle()
    router: Any = scene.launcher.units["router-0.1"]
    router.told = RouterDemand(prefill_sent=2.0)
    for _ in range(6):
        await pass_time(scene, 3.0)
    assert len(await ready(scene)) == 3
    router.told = RouterDemand()
    for _ in range(60):
        await pass_time(scene, 3.0)
    assert await ready(scene) == []
    assert "sapling scales from 1 to 3 replicas: 2.00 would be busy all the time" in await texts(scene)


async def test_a_waiting_request_brings_the_first_replica(scene: Scene) -> None:
    scene.start(replicas=0, autoscaling=AUTOSCALING)
    await scene.settle()
    assert await ready(scene) == []
    router: Any = scene.launcher.units["router-0.1"]
    router.told = RouterDemand(num_waiting=1)
    await pass_time(scene, 3.0)
    assert await ready(scene) == ["replica-0.1"]
    assert "sapling scales from 0 to 1 replicas: a request waits" in await texts(scene)


async def test_a_router_that_does_not_answer_is_left_out(scene: Scene) -> None:
    scene.start(replicas=1, routers={"count": 2}, autoscaling=AUTOSCALING)
    await scene.settle()
    silent, other = (cast("Any", scene.launcher.units[f"router-{index}.1"]) for index in range(2))
    silent.told, other.told = None, RouterDemand(prefill_sent=2.0)
    for _ in range(6):
        await pass_time(scene, 3.0)
    assert len(await ready(scene)) == 3


async def test_routers_that_do_not_answer_are_no_reason_to_end_anything(scene: Scene) -> None:
    scene.start(replicas=2, autoscaling=AUTOSCALING)
    await scene.settle()
    router: Any = scene.launcher.units["router-0.1"]
    router.told = None
    for _ in range(60):
        await pass_time(scene, 3.0)
    assert len(await ready(scene)) == 2


async def test_scaling_by_hand_what_scales_by_itself_is_refused(scene: Scene) -> None:
    scene.start(replicas=1, autoscaling=AUTOSCALING)
    with pytest.raises(InvalidRequest, match="scale by themselves"):
        await scene.controller.scale(2)
