"""A router follows which models there are: each version has its own replicas and limits until it leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from protocol.errors import Draining, ModelNotFound, NoReplica
from protocol.membership import DeploymentView, Membership

Make = Callable[..., Awaitable[Any]]


def names(stage: Any) -> dict[str, list[str]]:
    """The replicas of each version that can be asked for."""
    models = stage.catalog.status().models
    return {each.served.version: [one.replica_id for one in each.router.replicas] for each in models}


async def ask(router: Any, request: Any) -> list[int]:
    async with router.open(request) as generation:
        return [token async for output in generation for token in output.token_ids]


async def test_every_replica_is_its_own_versions(stage: Any, model: Any) -> None:
    one, two = model("one"), model("two")
    replicas = [
        await stage.replica(served, replica) for served, replica in ((one, "a"), (two, "b"), (one, "c"))
    ]
    await stage.follow(one, two, replicas=replicas)
    assert names(stage) == {"one-1": ["a", "c"], "two-1": ["b"]}
    assert stage.catalog.names == ("one", "two")


async def test_a_replica_that_comes_to_serve_another_version_changes_sides(
    stage: Any, model: Any, eventually: Make
) -> None:
    old, new = model("m", "m-1", current=False), model("m", "m-2")
    replica = await stage.replica(old, "a")
    await stage.follow(old, new, replicas=[replica])
    successor = await stage.replica(new, "a", incarnation=2)
    await stage.follow(old, new, replicas=[successor])
    assert names(stage) == {"m-1": [], "m-2": ["a"]}
    await eventually(lambda: stage.accepting("m") == 1)


async def test_a_model_that_is_being_loaded_holds_no_other_up(
    stage: Any, model: Any, eventually: Make
) -> None:
    one, slow = model("one"), model("slow")
    stage.reader.gates["slow-1"] = threading.Event()
    await stage.follow(one)
    await stage.models.follow(Membership(2, (stage.info(await stage.replica(one, "a")),), (one, slow)))
    await eventually(lambda: stage.accepting("one") == 1)
    with pytest.raises(NoReplica, match="'slow' is not here: it is being loaded"):
        stage.catalog.pick("slow")
    stage.reader.gates["slow-1"].set()
    await eventually(lambda: "slow" in stage.catalog.names)


async def test_a_replica_that_was_named_while_its_model_was_being_loaded_is_found(
    stage: Any, model: Any, eventually: Make
) -> None:
    slow = model("slow")
    gate = stage.reader.gates["slow-1"] = threading.Event()
    replica = await stage.replica(slow, "a")
    await stage.models.follow(Membership(1, (), (slow,)))
    await stage.models.follow(Membership(2, (stage.info(replica),), (slow,)))
    gate.set()
    await stage.models.begun()
    await eventually(lambda: stage.accepting("slow") == 1)


async def test_with_nothing_that_can_be_loaded_at_first_there_is_nothing_to_begin(
    stage: Any, model: Any
) -> None:
    stage.reader.broken |= {"bad-1", "worse-1"}
    with pytest.raises(ModelNotFound, match="there is no bad-1"):
        await stage.follow(model("bad"), model("worse"))


async def test_one_model_that_cannot_be_loaded_keeps_no_other_from_its_clients(
    stage: Any, model: Any
) -> None:
    stage.reader.broken.add("bad-1")
    await stage.follow(model("good"), model("bad"))
    assert stage.catalog.names == ("good",)
    assert stage.catalog.status().missing == (("bad", "it could not be loaded"),)


async def test_what_cannot_be_loaded_later_is_never_picked(stage: Any, model: Any, eventually: Make) -> None:
    old, bad = model("m", "m-1", current=False), model("m", "m-2")
    stage.reader.broken.add("m-2")
    await stage.follow(old)
    await stage.follow_later(old, bad, model("other", "m-2"))
    for _ in range(20):
        assert stage.catalog.pick("m").served.version == "m-1"


async def test_a_name_without_a_version_that_could_be_loaded_says_so(
    stage: Any, model: Any, eventually: Make
) -> None:
    stage.reader.broken.add("bad-1")
    await stage.follow(model("good"))
    await stage.follow_later(model("good"), model("bad"))
    with pytest.raises(NoReplica, match="the model 'bad' is not here: it could not be loaded"):
        stage.catalog.pick("bad")


async def test_a_version_that_has_left_is_closed(
    stage: Any, model: Any, make_request: Any, eventually: Make
) -> None:
    old, new = model("m", "m-1", current=False), model("m", "m-2")
    await stage.follow(old, new)
    core = next(each for each in stage.models._routers() if stage.catalog.current("m").router is not each)
    await stage.follow(new)
    assert list(names(stage)) == ["m-2"]
    await eventually(lambda: not stage.models._leaves)
    with pytest.raises(Draining):
        await ask(core, make_request())


async def test_a_request_of_a_version_that_has_left_may_wait_as_long_as_any(
    stage: Any, model: Any, make_request: Any, eventually: Make
) -> None:
    kept, left = model("kept"), model("left")
    replica = await stage.replica(left, "a", automatic=False)
    await stage.follow(kept, left, replicas=[replica])
    core = stage.catalog.pick("left").router
    async with core.open(make_request()) as generation:
        await stage.follow(kept)
        await eventually(lambda: replica.writers == [])
        assert stage.models._leaves and not generation.over
    await eventually(lambda: not stage.models._leaves)


async def test_a_version_that_has_left_waits_no_longer_than_a_request_may(
    stage: Any, model: Any, make_request: Any, eventually: Make
) -> None:
    kept, left = model("kept"), model("left", admission_timeout_s=0.01)
    await stage.follow(kept, left)
    waiting = asyncio.create_task(ask(stage.catalog.pick("left").router, make_request(deadline_s=1000.0)))
    await eventually(lambda: sum(demand.num_waiting for demand in stage.models.demand()) == 1)
    await stage.follow(kept)
    with pytest.raises(Draining):
        await waiting


async def test_counters_are_the_names_and_do_not_fall_when_a_version_leaves(
    stage: Any, model: Any, make_request: Any, eventually: Make
) -> None:
    old, new = model("m", "m-1", current=False), model("m", "m-2")
    replicas = [await stage.replica(old, "a"), await stage.replica(new, "b")]
    await stage.follow(old, new, replicas=replicas)
    for router in stage.models._routers():
        await ask(router, make_request())
    line = 'trunkline_router_requests_total{model_name="m"} 2.0'
    assert line in stage.catalog.metrics.page().decode()
    await stage.follow(new, replicas=replicas[1:])
    assert line in stage.catalog.metrics.page().decode()


async def test_demand_is_told_of_each_version_apart(stage: Any, model: Any, make_request: Any) -> None:
    old, new = model("m", "m-1", current=False), model("m", "m-2")
    replicas = [await stage.replica(old, "a"), await stage.replica(new, "b")]
    await stage.follow(old, new, replicas=replicas)
    await ask(stage.catalog.current("m").router, make_request())
    demands = {demand.version: demand for demand in stage.models.demand()}
    assert {version: demand.num_requests for version, demand in demands.items()} == {"m-1": 0, "m-2": 1}
    assert [replica for replica, _ in demands["m-2"].loads] == ["b"]


async def test_a_newer_word_on_a_version_holds_from_then_on(
    stage: Any, model: Any, make_request: Any
) -> None:
    served = model("m")
    await stage.follow(served)
    serving = stage.catalog.pick("m")
    assert (serving.bounds.context_tokens, stage.catalog.ready) == (4096, False)
    await stage.follow(replace(served, max_model_len=99, scales_to_zero=True, admission_timeout_s=0.01))
    assert stage.catalog.pick("m") is serving
    assert (serving.bounds.context_tokens, stage.catalog.ready) == (99, True)
    with pytest.raises(NoReplica):
        await ask(serving.router, make_request())


async def test_a_drain_of_a_replica_is_known_to_the_version_that_has_it(
    stage: Any, model: Any, make_request: Any, eventually: Make
) -> None:
    one, two = model("one"), model("two")
    replicas = [await stage.replica(one, "a"), await stage.replica(two, "b")]
    await stage.follow(one, two, replicas=replicas)
    await eventually(lambda: stage.accepting("one") == stage.accepting("two") == 1)
    assert await stage.models.drain_replica("b", 10.0) is True
    assert (stage.accepting("one"), stage.accepting("two")) == (1, 0)
    assert await stage.models.drain_replica("nobody", 10.0) is True


async def test_a_draining_router_takes_nothing_for_any_model(
    stage: Any, model: Any, make_request: Any, eventually: Make
) -> None:
    one, late = model("one", scales_to_zero=True), model("late")
    await stage.follow(one)
    stage.models.drain()
    await stage.follow_later(one, late)
    assert not stage.catalog.ready and stage.catalog.status().draining
    for name in ("one", "late"):
        with pytest.raises(Draining):
            await ask(stage.catalog.pick(name).router, make_request())


async def test_blocks_of_its_own_are_told_of_every_replica(stage: Any, model: Any, eventually: Make) -> None:
    one, two = model("one"), model("two")
    blocks = [bytes([number]) * 16 for number in range(3)]
    replicas = [
        await stage.replica(one, "a", cache=blocks[:2]),
        await stage.replica(one, "b", cache=blocks[1:2]),
        await stage.replica(two, "c", cache=blocks),
    ]
    await stage.follow(one, two, replicas=replicas)
    await eventually(lambda: all(each.index.value == "synced" for each in statuses(stage)))
    assert sorted(await stage.models.own_blocks()) == [("a", 1), ("b", 0), ("c", 3)]


def statuses(stage: Any) -> list[Any]:
    return [replica for model in stage.catalog.status().models for replica in model.router.replicas]


async def test_what_the_controller_says_of_the_deployment_is_shown(stage: Any, model: Any) -> None:
    view = DeploymentView(upgrading=True)
    await stage.models.follow(Membership(1, (), (model("m"),), view))
    assert stage.catalog.status().deployment is view
