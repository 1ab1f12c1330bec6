"""What is done to the contestants: single requests in turn, or many connections at once."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from router_parts.clients import Timing
from router_parts.contestants import Contestant
from router_parts.conversation import Conversation

TURN = 10  # requests: long enough to be warm, short enough for noise to meet all alike
WARM_SHARE = 0.2  # of a load's time, before it

MakeConversation = Callable[[int], Conversation]  # from a seed


@dataclass(frozen=True, slots=True)
class Load:
    """What one contestant did under load."""

    per_s: float  # answers
    cpu_s: float | None  # of the router's process, an answer; None: there is no router
    first_s: float  # median


async def take_turns(
    contestants: Sequence[Contestant], make: MakeConversation, rounds: int
) -> dict[str, list[Timing]]:
    """One connection each, in turns of `TURN` requests; everybody's first turn warms up."""
    timings: dict[str, list[Timing]] = {each.name: [] for each in contestants}
    async with AsyncExitStack() as stack:
        clients = {each.name: await stack.enter_async_context(each.connect(make(1))) for each in contestants}
        for _ in range(1 + max(1, rounds // TURN)):
            for name, client in clients.items():
                timings[name] += [await client.ask() for _ in range(TURN)]
    return {name: each[TURN:] for name, each in timings.items()}


async def under_load(
    contestant: Contestant, make: MakeConversation, num_connections: int, seconds: float
) -> Load:
    """Every connection asks again as soon as it is answered."""
    answers: list[Timing] = []
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(contestant.connect(make(seed))) for seed in range(num_connections)
        ]

        async def together(duration_s: float) -> float:
            began = time.perf_counter()

            async def ask_until_the_end(client: int) -> None:
                while time.perf_counter() < began + duration_s:
                    answers.append(await clients[client].ask())

            await asyncio.gather(*map(ask_until_the_end, range(num_connections)))
            return time.perf_counter() - began

        await together(WARM_SHARE * seconds)
        answers.clear()
        before_s = contestant.cpu_s
        elapsed_s = await together(seconds)
        after_s = contestant.cpu_s
    used = None if before_s is None or after_s is None else (after_s - before_s) / len(answers)
    return Load(len(answers) / elapsed_s, used, statistics.median(answer.first_s for answer in answers))
