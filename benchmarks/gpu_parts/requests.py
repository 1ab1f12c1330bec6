"""Seconds of requests through an engine: the whole loop, with scheduler, hashing and prefix cache."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from protocol.messages import Submit, TokenLogprob
from protocol.sampling import SamplingParams
from protocol.token_rows import TokenRows
from protocol.tokens import pack_tokens
from workers.engine import Engine


@dataclass(frozen=True, slots=True)
class OfflineLoad:
    requests: int
    prompt: tuple[int, int]  # tokens, from and to
    output: tuple[int, int]


def first_token_s(engine: Engine, prompt: list[int], name: str) -> float:
    """From the request to its first token."""
    sampling = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, seed=0)
    begun_s = time.perf_counter()
    engine.submit(Submit(name, pack_tokens(prompt), sampling))
    while engine.has_work:
        engine.step()
    return time.perf_counter() - begun_s


@dataclass(slots=True)
class Answer:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


def answer(
    engine: Engine, prompts: Sequence[list[int]], count: int, logprobs: int | None = None
) -> list[Answer]:
    """Of all prompts at once: `count` greedy tokens each."""
    sampling = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, seed=0, logprobs=logprobs)
    for place, prompt in enumerate(prompts):
        engine.submit(Submit(str(place), pack_tokens(prompt), sampling))
    rows, answers = TokenRows(), [Answer() for _ in prompts]
    while engine.has_work:
        report = engine.step()
        for output in rows.expand(report.outputs, report.rows, report.tokens):
            found = answers[int(output.request_id)]
            found.token_ids += output.token_ids
            found.logprobs += output.logprobs or ()
    return answers


def offline_s(engine: Engine, load: OfflineLoad, seed: int) -> tuple[float, int]:
    """All requests at once: seconds, and tokens generated."""
    chance, num_tokens = random.Random(seed), 0
    begun_s = time.perf_counter()
    for index in range(load.requests):
        prompt = chance.choices(range(3, engine.facts.vocab_size), k=chance.randint(*load.prompt))
        length = chance.randint(*load.output)
        sampling = SamplingParams(temperature=0.6, max_tokens=length, ignore_eos=True, seed=index)
        engine.submit(Submit(f"{seed}-{index}", pack_tokens(prompt), sampling))
        num_tokens += length
    while engine.has_work:
        engine.step()
    return time.perf_counter() - begun_s, num_tokens


def loop_s(engine: Engine, rows: int, length: int, steps: int) -> float:
    """Per step in which `rows` requests decode behind about `length` tokens each, through the whole loop."""
    sampling = SamplingParams(temperature=0.0, max_tokens=2 * steps + 200, ignore_eos=True, seed=0)
    for row in range(rows):
        prompt = random.Random(row).choices(range(3, engine.facts.vocab_size), k=length)
        engine.submit(Submit(f"loop {row}", pack_tokens(prompt), sampling))
    while engine.load().num_waiting or engine.load().num_running < rows:
        engine.step()
    for _ in range(steps // 4 + 4):
        engine.step()
    begun_s = time.perf_counter()
    for _ in range(steps):
        engine.step()
    spent_s = time.perf_counter() - begun_s
    for row in range(rows):
        engine.cancel(f"loop {row}")
    while engine.has_work:
        engine.step()
    return spent_s / steps
