"""A router is to meet a replica: it answers once requests go there, or once it is clear that none will."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from protocol.membership import Membership, ReplicaState
from protocol.messages import Identity

Make = Callable[..., Awaitable[Any]]


@pytest.fixture
def waits(stage: Any) -> Any:
    """A meeting that has begun, and that nothing answers yet."""

    async def begin(replica_id: str, incarnation: int = 1) -> asyncio.Task[str]:
        meeting = asyncio.create_task(stage.models.meet(replica_id, incarnation))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not meeting.done()
        return meeting

    return begin


async def test_a_replica_is_met_once_it_is_sent_requests(stage: Any, model: Any) -> None:
    served = model()
    await stage.follow(served, replicas=[await stage.replica(served, "a")])
    assert await stage.models.meet("a", 1) == ""
    assert stage.accepting("m") == 1


async def test_the_meeting_may_be_asked_for_before_the_membership_names_the_replica(
    stage: Any, model: Any, waits: Any
) -> None:
    served = model()
    await stage.follow(served)
    meeting = await waits("a")
    await stage.follow(served, replicas=[await stage.replica(served, "a")])
    assert await meeting == ""


async def test_a_replica_that_is_still_starting_is_waited_for(stage: Any, model: Any, waits: Any) -> None:
    served = model()
    replica = await stage.replica(served, "a")
    await stage.follow(served, replicas=[stage.info(replica, state=ReplicaState.STARTING)])
    meeting = await waits("a")
    await stage.follow(served, replicas=[replica])
    assert await meeting == ""


async def test_a_successor_is_not_met_by_its_predecessors_connection(
    stage: Any, model: Any, waits: Any
) -> None:
    served = model()
    await stage.follow(served, replicas=[await stage.replica(served, "a")])
    assert await stage.models.meet("a", 1) == ""
    meeting = await waits("a", 2)
    await stage.follow(served, replicas=[await stage.replica(served, "a", incarnation=2)])
    assert await meeting == ""


async def test_a_replica_with_other_files_is_refused_with_the_reason(
    stage: Any, model: Any, waits: Any
) -> None:
    served = model()
    other = Identity("m", "other-digest", "tokenizer-digest")
    await stage.follow(served)
    meeting = await waits("a")
    await stage.follow(served, replicas=[await stage.replica(served, "a", identity=other)])
    assert "model_digest differs" in await meeting


async def test_a_refusal_of_the_predecessor_says_nothing_of_the_successor(
    stage: Any, model: Any, waits: Any
) -> None:
    served = model()
    other = Identity("m", "other-digest", "tokenizer-digest")
    await stage.follow(served, replicas=[await stage.replica(served, "a", identity=other)])
    assert await stage.models.meet("a", 1) != ""
    successor = await stage.replica(served, "a", incarnation=2)
    await stage.follow(served, replicas=[stage.info(successor, state=ReplicaState.STARTING)])
    meeting = await waits("a", 2)
    await stage.follow(served, replicas=[successor])
    assert await meeting == ""


async def test_a_replica_whose_model_cannot_be_loaded_here_will_not_be_met(
    stage: Any, model: Any, eventually: Make
) -> None:
    bad = model("bad")
    stage.reader.broken.add("bad-1")
    stage.reader.gates["bad-1"] = threading.Event()
    await stage.follow(model("good"))
    replica = stage.info(await stage.replica(bad, "a"))
    await stage.models.follow(Membership(2, (replica,), (model("good"), bad)))
    meeting = asyncio.create_task(stage.models.meet("a", 1))
    stage.reader.gates["bad-1"].set()
    assert await meeting == "router-0 cannot load its model: there is no bad-1"


async def test_a_model_that_its_predecessor_had_says_nothing_of_a_replica(
    stage: Any, model: Any, waits: Any
) -> None:
    bad, good = model("m", "m-1"), model("m", "m-2")
    stage.reader.broken.add("m-1")
    await stage.follow(good)
    await stage.follow_later(good, bad, replicas=[await stage.replica(bad, "a")])
    meeting = await waits("a", 2)
    await stage.follow(good, replicas=[await stage.replica(good, "a", incarnation=2)])
    assert await meeting == ""


async def test_a_core_cannot_tell_of_a_successor_before_it_has_heard_of_it(stage: Any, model: Any) -> None:
    served = model()
    await stage.follow(served, replicas=[await stage.replica(served, "a")])
    assert await stage.models.meet("a", 1) == ""
    assert stage.catalog.current("m").router.met("a", 2) is None
    assert stage.catalog.current("m").router.met("b", 1) is None


async def test_an_incarnation_that_was_replaced_will_not_be_met(stage: Any, model: Any) -> None:
    served = model()
    await stage.follow(served, replicas=[await stage.replica(served, "a", incarnation=3)])
    assert await stage.models.meet("a", 2) == "incarnation 3 has taken its place"


async def test_a_replica_that_leaves_before_it_could_be_met_is_waited_for_no_longer(
    stage: Any, model: Any, waits: Any
) -> None:
    served = model()
    replica = await stage.replica(served, "a")
    await stage.follow(served, replicas=[stage.info(replica, state=ReplicaState.STARTING)])
    meeting = await waits("a")
    await stage.follow(served)
    assert await meeting == "it has left the deployment"
