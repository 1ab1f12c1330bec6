"""The replica's end of the data plane: what a router gets, and what a bad one cannot break."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from protocol.block_hash import BlockHasher
from protocol.codec import encode
from protocol.events import Cleared, Stored
from protocol.frames import frame
from protocol.handshake import HelloRefused
from protocol.messages import (
    CacheReset,
    Cancel,
    FinishReason,
    Ping,
    Pong,
    Rejected,
    ResetCache,
    Resync,
    SnapshotChunk,
    StepFrame,
    Submit,
)
from protocol.tokens import pack_tokens
from workers import request_ledger, router_connection

Build = Callable[..., Submit]


def hold(replica: Any, from_step: int) -> None:
    """Steps from this one on wait until the test opens the gate."""
    replica.runner.holds_from = from_step
    replica.runner.gate.clear()


async def test_a_connection_begins_with_a_snapshot_and_the_load(replica: Any, submit: Build) -> None:
    async with replica.router() as router:
        chunk, step = await router.receive(), await router.receive()
    assert isinstance(chunk, SnapshotChunk) and chunk.last and chunk.digests == b""
    assert isinstance(step, StepFrame) and step.load.num_blocks == 127  # the null block is nobody's


async def test_a_request_is_answered_token_by_token(replica: Any, submit: Build) -> None:
    async with replica.router() as router:
        router.send(submit(prompt=range(10, 20), max_tokens=3))
        outputs = await router.outputs_of("r")
    assert [token for output in outputs for token in output.token_ids] == [20, 21, 22]
    assert outputs[-1].finish_reason is FinishReason.LENGTH


async def test_a_frame_says_how_many_of_its_routers_requests_the_load_contains(
    replica: Any, submit: Build
) -> None:
    async with replica.router() as other, replica.router() as router:
        router.send(submit("a"))
        router.send(submit("a"))  # refused: it is there already
        router.send(submit("b"))
        frame = await router.until(StepFrame, lambda step: step.num_submits == 3)
        assert frame.load.num_running + frame.load.num_waiting <= 2
        assert (await other.until(StepFrame)).num_submits == 0


async def test_the_same_prompt_again_is_reported_as_cached(replica: Any, submit: Build) -> None:
    async with replica.router() as router:
        router.send(submit("a"))
        assert (await router.outputs_of("a"))[0].num_cached_tokens == 0
        router.send(submit("b"))
        assert (await router.outputs_of("b"))[0].num_cached_tokens == 8


async def test_every_router_hears_every_event_and_only_its_own_tokens(replica: Any, submit: Build) -> None:
    async with replica.router("one") as one, replica.router("two") as two:
        await one.snapshot(), await two.snapshot()
        one.send(submit("of one"))
        heard = await two.until(StepFrame, lambda step: any(isinstance(e, Stored) for e in step.events))
        two.send(submit("of two"))
        frames = [heard]
        while not any(output.request_id == "of two" for output in frames[-1].outputs):
            frames.append(await two.until(StepFrame))
    assert {output.request_id for step in frames for output in step.outputs} == {"of two"}


async def test_a_newcomer_gets_the_cache_as_it_is(replica: Any, submit: Build) -> None:
    async with replica.router() as router:
        router.send(submit())
        await router.outputs_of("r")
    async with replica.router("later") as later:
        digests = await later.snapshot()
    expected = BlockHasher(bytes(24), 4).digests(pack_tokens(range(10, 22)))
    assert {digests[at : at + 16] for at in range(0, len(digests), 16)} == set(expected)


async def test_a_snapshot_travels_in_chunks(
    replica: Any, submit: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_ledger, "SNAPSHOT_CHUNK_BYTES", 16)
    async with replica.router() as router:
        router.send(submit())
        await router.outputs_of("r")
        router.send(Resync())
        chunks = [await router.until(SnapshotChunk) for _ in range(3)]
    assert [chunk.last for chunk in chunks] == [False, False, True]


async def test_a_lost_router_frees_its_blocks(replica: Any, submit: Build) -> None:
    hold(replica, from_step=2)
    async with replica.router("stays") as stays:
        async with replica.router("goes") as goes:
            goes.send(submit(max_tokens=200))
            await stays.until(StepFrame, lambda step: step.load.num_used_blocks > 0)
        while len(replica.server.connections) > 1:
            await stays.heard()
        replica.runner.gate.set()
        freed = await stays.until(StepFrame, lambda step: step.load.num_used_blocks == 0)
    assert freed.step < 200


async def test_a_cancelled_request_frees_its_blocks(replica: Any, submit: Build) -> None:
    hold(replica, from_step=2)
    async with replica.router() as router:
        router.send(submit(max_tokens=200))
        await router.until(StepFrame, lambda step: step.load.num_used_blocks > 0)
        router.send(Cancel("r"))
        await router.heard()
        replica.runner.gate.set()
        freed = await router.until(StepFrame, lambda step: step.load.num_used_blocks == 0)
    assert freed.step == 2


async def test_one_sequence_can_be_stopped_while_its_siblings_go_on(replica: Any, submit: Build) -> None:
    hold(replica, from_step=4)
    async with replica.router() as router:
        router.send(submit(max_tokens=60, n=3))
        await router.until(StepFrame, lambda step: len(step.outputs) == 3)
        router.send(Cancel("r", 1))
        await router.heard()
        replica.runner.gate.set()
        await router.until(StepFrame, lambda step: [each.index for each in step.outputs] == [0, 2])
        router.send(Cancel("r", 0))
        router.send(Cancel("r", 2))
        await router.until(StepFrame, lambda step: step.load.num_used_blocks == 0)


async def test_a_request_that_can_never_run_is_rejected_and_others_go_on(replica: Any, submit: Build) -> None:
    async with replica.router() as router:
        router.send(submit("long", prompt=range(300)))
        rejected = await router.until(Rejected)
        router.send(submit("short"))
        assert await router.outputs_of("short")
    assert (rejected.request_id, rejected.code) == ("long", "context_length_exceeded")


async def test_a_reset_is_refused_while_blocks_are_in_use_and_granted_after(
    replica: Any, submit: Build
) -> None:
    hold(replica, from_step=2)
    async with replica.router() as router:
        router.send(submit(max_tokens=200))
        await router.until(StepFrame, lambda step: step.load.num_used_blocks > 0)
        router.send(ResetCache(1))
        await router.heard()
        replica.runner.gate.set()
        assert (await router.until(CacheReset)).blocks_in_use > 0
        router.send(Cancel("r"))
        router.send(ResetCache(2))
        assert await router.until(CacheReset) == CacheReset(2, 0)
        await router.until(StepFrame, lambda step: Cleared() in step.events)


async def test_a_ping_is_answered_while_a_step_hangs(replica: Any, submit: Build) -> None:
    async with replica.router() as router:
        replica.runner.gate.clear()
        router.send(submit())
        router.send(Ping(7))
        assert await router.until(Pong) == Pong(7)


@pytest.mark.parametrize(
    "noise", [b"\0\0\0\5abc", frame(b"nonsense"), frame(encode(Pong(1))), b"\xff\xff\xff\xff"], ids=repr
)
async def test_a_router_that_speaks_nonsense_loses_only_its_own_connection(
    replica: Any, submit: Build, noise: bytes
) -> None:
    async with replica.router("good") as good:
        async with replica.router("bad") as bad:
            await bad.snapshot()
            bad.writer.write(noise)
            bad.writer.write_eof()
            async with asyncio.timeout(20):
                while await bad.reader.read(4096):
                    pass
        good.send(submit())
        assert await good.outputs_of("r")


async def test_a_router_without_the_key_is_refused(replica: Any) -> None:
    with pytest.raises(HelloRefused):
        async with replica.router(key=b"x" * 32):
            pass


async def test_a_router_that_does_not_read_is_cut_off_and_nobody_waits_for_it(
    replica: Any, submit: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_connection, "MAX_BUFFERED_BYTES", 1024)
    async with replica.router("reads") as reads, replica.router("sleeps") as sleeps:
        reads.send(submit("long", prompt=range(10, 200)))
        await reads.outputs_of("long")
        sleeps.reader._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(20_000):
            sleeps.send(Resync())
        async with asyncio.timeout(30):
            while len(replica.server.connections) > 1:
                reads.send(Ping(0))
                await reads.until(Pong)
        reads.send(submit("after"))
        assert await reads.outputs_of("after")


async def test_a_snapshot_over_the_limit_is_not_a_slow_reader(
    replica: Any, submit: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_connection, "MAX_BUFFERED_BYTES", 0)
    monkeypatch.setattr(replica.engine, "snapshot", lambda: bytes(16 * 1024 * 1024))
    async with replica.router() as router:
        assert len(await router.snapshot()) == 16 * 1024 * 1024


async def test_the_engines_death_cuts_every_connection_and_tells_why(replica: Any, submit: Build) -> None:
    replica.runner.fails_at = 0
    async with replica.router() as router:
        router.send(submit())
        with pytest.raises((AssertionError, ConnectionError)):
            await router.outputs_of("r")
    assert "the device is on fire" in replica.deaths[0]


async def test_draining_ends_what_runs_and_refuses_what_comes(replica: Any, submit: Build) -> None:
    hold(replica, from_step=2)
    async with replica.router() as router:
        router.send(submit("runs", max_tokens=20))
        await router.until(StepFrame, lambda step: step.load.num_used_blocks > 0)
        draining = asyncio.create_task(replica.server.drain(grace_s=20))
        await asyncio.sleep(0)
        router.send(submit("comes"))
        await router.heard()
        replica.runner.gate.set()
        assert (await router.until(Rejected)).code == "draining"
        await router.outputs_of("runs")
        await draining


async def test_draining_an_idle_replica_takes_no_time(replica: Any) -> None:
    async with asyncio.timeout(10):
        await replica.server.drain(grace_s=3600)


async def test_a_drain_does_not_wait_beyond_its_grace(replica: Any, submit: Build) -> None:
    hold(replica, from_step=2)
    async with replica.router() as router:
        router.send(submit(max_tokens=20))
        await router.until(StepFrame, lambda step: step.load.num_used_blocks > 0)
        await replica.server.drain(grace_s=0.01)
        replica.runner.gate.set()


async def test_closing_frees_the_runner(replica: Any) -> None:
    await replica.server.aclose()
    assert replica.runner.closed
