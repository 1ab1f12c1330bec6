"""One request's life at the router: what a move may neither lose nor double."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from protocol.messages import FinishReason, SequenceOutput, TokenLogprob
from router.requests.generation import Generation, Placement
from router.requests.routed_request import Decision, Reason, RoutedRequest

Make = Callable[..., Awaitable[Any]]
SCORES = (TokenLogprob(-1.0, 1), TokenLogprob(-2.0, 1))


@pytest.fixture
def scored_request(make_request: Callable[..., RoutedRequest]) -> Callable[..., RoutedRequest]:
    def make(tokens: Any = range(3), **options: Any) -> RoutedRequest:
        request = make_request(tokens, **options)
        return replace(request, sampling=replace(request.sampling, prompt_logprobs=1))

    return make


def placed(request: RoutedRequest) -> Generation:
    generation = Generation(request, None)
    place(generation)
    return generation


def place(generation: Generation) -> None:
    decision = Decision("a", 0, 0.0, Reason.ONLY)
    generation.place(Placement(decision, generation.next_wire_id, 0, True))


def move(generation: Generation) -> None:
    generation.displace()
    generation.moves += 1
    place(generation)


def output(generation: Generation, index: int, token: int, **fields: Any) -> SequenceOutput:
    return SequenceOutput(generation.next_wire_id, index, (token,), 0, **fields)


async def read(generation: Generation, count: int) -> list[SequenceOutput]:
    return [await anext(generation) for _ in range(count)]


async def test_scores_that_wait_for_their_reader_survive_a_move(scored_request: Any) -> None:
    generation = placed(scored_request())
    generation.push(output(generation, 0, 7, prompt_logprobs=SCORES))
    move(generation)
    generation.push(output(generation, 0, 8))
    first, second = await read(generation, 2)
    assert (first.prompt_logprobs, second.prompt_logprobs) == (SCORES, None)


async def test_scores_that_come_twice_are_passed_on_once(scored_request: Any) -> None:
    generation = placed(scored_request())
    generation.push(output(generation, 0, 7, prompt_logprobs=SCORES))
    move(generation)
    generation.push(output(generation, 0, 8, prompt_logprobs=SCORES))
    first, second = await read(generation, 2)
    assert (first.prompt_logprobs, second.prompt_logprobs) == (SCORES, None)
    assert second.token_ids == (8,)


def test_the_next_replica_is_not_asked_for_scores_that_came(scored_request: Any) -> None:
    generation = placed(scored_request())
    assert generation.submit("a", 0.0).sampling.prompt_logprobs == 1
    generation.push(output(generation, 0, 7, prompt_logprobs=SCORES))
    move(generation)
    assert generation.submit("b", 0.0).sampling == replace(generation.request.sampling, prompt_logprobs=None)


def test_it_is_asked_for_those_that_did_not(scored_request: Any) -> None:
    generation = placed(scored_request())
    move(generation)
    assert generation.submit("b", 0.0).sampling.prompt_logprobs == 1


async def test_a_prompt_that_was_only_scored_ends_without_a_token(scored_request: Any) -> None:
    generation = placed(scored_request(max_tokens=0))
    end = SequenceOutput("x", 0, (), 0, FinishReason.LENGTH, prompt_logprobs=SCORES)
    generation.push(end)
    assert [each async for each in generation] == [end]
    assert generation.done


async def test_a_dying_replicas_scores_arrive_once(
    make_replica: Make, make_router: Make, scored_request: Any
) -> None:
    replicas = [await make_replica(name, die_after_tokens=4) for name in "ab"]
    router = await make_router(replicas)
    async with router.open(scored_request(range(10), max_tokens=9, n=2)) as generation:
        survivor = next(each for each in replicas if each.replica_id != generation.replica)
        survivor.die_after_tokens = None
        outputs = [each async for each in generation]
    scored = [each for each in outputs if each.prompt_logprobs is not None]
    assert [each.index for each in scored] == [0] and outputs[0] is scored[0]
    assert len(scored[0].prompt_logprobs) == 9
    assert [len([each for each in outputs if each.index == index]) for index in (0, 1)] == [9, 9]
    assert survivor.submits[0].sampling.prompt_logprobs is None


async def test_a_scored_prompt_matches_no_cache_until_it_was_scored(
    make_replica: Make, make_router: Make, scored_request: Any, eventually: Make
) -> None:
    dying = await make_replica("a", automatic=False)
    router = await make_router([dying])
    async with router.open(scored_request(range(10))) as generation:
        assert generation.decision.matched_tokens == 0
        await eventually(lambda: len(dying.running) == 1)
        dying.step()
        await anext(generation)
        cache = dying.cache
        other = await make_replica("b", cache=list(cache))
        await router.set_replicas([dying.info(), other.info()])
        await eventually(lambda: all(each.index.value == "synced" for each in router.status().replicas))
        await dying.die()
        await eventually(lambda: len(other.submits) == 1)
        assert generation.decision.matched_tokens == 8


def test_its_next_replica_is_told_how_long_its_client_waits(make_request: Any) -> None:
    generation = placed(make_request())
    assert generation.submit("a", 5.0).waited_s == 0.0
    generation.waiting_since_s = 2.0
    assert generation.submit("b", 5.0).waited_s == 3.0
