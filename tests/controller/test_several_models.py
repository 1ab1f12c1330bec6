"""A deployment of several models: each has its own replicas, its own demand and its own upgrade."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from controller.config_file import build_config
from controller.reconcile import Action, Verb
from controller.status import DeploymentStatus
from controller.wanted import served_model
from protocol.demand import RouterDemand
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from tests.controller.conftest import Scene

MODELS = [{"model": "a", "replicas": 1}, {"model": "b", "replicas": 2}]


async def replicas(scene: Scene) -> dict[str, list[str]]:
    status = await seen(scene)
    return {
        model.name: [f"{each.replica_id}.{each.incarnation}" for each in status.replicas_of(model.name)]
        for model in status.models
    }


async def seen(scene: Scene) -> DeploymentStatus:
    await scene.settle()
    return (await scene.controller.status(None))[1]


async def test_each_model_gets_its_replicas(scene: Scene) -> None:
    scene.start(models=MODELS)
    assert await replicas(scene) == {"a": ["replica-0.1"], "b": ["replica-1.1", "replica-2.1"]}
    assert scene.launcher.models == {
        "replica-0.1": "a",
        "replica-1.1": "b",
        "replica-2.1": "b",
        "router-0.1": "",
    }


async def test_scaling_needs_a_name_and_changes_that_model_alone(scene: Scene) -> None:
    scene.start(models=MODELS)
    await scene.settle()
    with pytest.raises(InvalidRequest, match="say which model: there are a, b"):
        await scene.controller.scale(2)
    with pytest.raises(InvalidRequest, match="there is no model 'c': there are a, b"):
        await scene.controller.scale(2, "c")
    await scene.controller.scale(2, "a")
    assert await replicas(scene) == {"a": ["replica-0.1", "replica-3.1"], "b": ["replica-1.1", "replica-2.1"]}


async def test_each_follows_its_own_demand(scene: Scene) -> None:
    autoscaling = {"min_replicas": 1, "max_replicas": 4, "up_after_s": 10}
    scene.start(models=[{"model": "a"}, {"model": "b"}], replicas=1, autoscaling=autoscaling)
    await scene.settle()
    router: Any = scene.launcher.units["router-0.1"]
    router.told = RouterDemand(prefill_sent=2.0)
    router.versions = {served_model(build_config({"model": "b"}).models[0]).version}
    for _ in range(6):
        scene.now_s += 3.0
        scene.controller._wake.set()
        await scene.settle()
    assert {name: len(each) for name, each in (await replicas(scene)).items()} == {"a": 1, "b": 3}


async def test_an_upgrade_adds_one_model_and_removes_another(scene: Scene) -> None:
    scene.start(models=MODELS)
    await scene.settle()
    await scene.controller.upgrade(build_config({"models": [MODELS[0], {"model": "c", "replicas": 1}]}))
    assert await replicas(scene) == {"a": ["replica-0.1"], "c": ["replica-3.1"]}
    status = await seen(scene)
    assert not status.view.upgrading and {each.incarnation for each in status.routers} == {1}


async def test_a_model_that_went_while_a_plan_was_carried_out_is_not_started(scene: Scene) -> None:
    scene.start(models=MODELS)
    await scene.settle()
    await scene.controller._apply(Action(Verb.START, "replica-9", "gone"))
    assert "replica-9.1" not in scene.launcher.units and "replica-9" not in scene.controller._units


async def test_a_removed_model_is_shown_until_its_replicas_are_gone(scene: Scene) -> None:
    scene.start(models=MODELS)
    await scene.settle()
    scene.launcher.units["replica-0.1"].drain_forever = True
    await scene.controller.upgrade(build_config({"models": [MODELS[1]]}))
    status = await seen(scene)
    assert [(each.name, each.current) for each in status.models] == [("b", True), ("a", False)]


async def test_a_successor_adopts_replicas_of_a_model_that_is_on_its_way_out(scene: Scene) -> None:
    scene.start(models=MODELS)
    await scene.settle()
    scene.launcher.units["replica-0.1"].drain_forever = True
    await scene.controller.upgrade(build_config({"models": [MODELS[1]]}))
    await scene.settle()
    await scene.crash()
    scene.start(models=MODELS)
    assert await replicas(scene) == {"b": ["replica-1.1", "replica-2.1"]}
    assert "drain replica-0.1" in scene.launcher.log
