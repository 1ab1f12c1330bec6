"""One request end to end on real parts: Ray, controller, two replicas, router, the real `openai` client."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

STORY = "Here is a long story about a fox who lived in a small house near the river. " * 8
Eventually = Callable[[Callable[[], bool], float, str], None]


def test_a_completion_names_the_capital(system: Any) -> None:
    answer = system.client().completions.create(
        model="sapling", prompt="The capital of France is", max_tokens=8, temperature=0
    )
    assert "Paris" in answer.choices[0].text
    assert answer.usage is not None and answer.usage.completion_tokens > 0


def test_a_chat_turn_is_answered_and_stops_by_itself(system: Any) -> None:
    answer = system.client().chat.completions.create(
        model="sapling",
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
    )
    assert answer.choices[0].finish_reason == "stop"
    assert "Paris" in (answer.choices[0].message.content or "")


def test_a_streamed_answer_equals_the_whole_one(system: Any) -> None:
    request: dict[str, Any] = {"model": "sapling", "prompt": "Hello, my name is", "max_tokens": 24, "seed": 7}
    whole = system.client().completions.create(**request).choices[0].text
    parts = [chunk.choices[0].text for chunk in system.client().completions.create(**request, stream=True)]
    assert "".join(parts) == whole and len(parts) > 2


def test_several_sequences_come_back_in_order(system: Any) -> None:
    answer = system.client().completions.create(
        model="sapling", prompt="Once upon a time", n=3, max_tokens=8, seed=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.text for choice in answer.choices}) > 1


def test_the_second_request_with_a_prefix_lands_where_the_first_one_was(system: Any) -> None:
    def ask(question: str) -> tuple[str, int]:
        raw = system.client().completions.with_raw_response.create(
            model="sapling", prompt=STORY + question, max_tokens=4
        )
        usage = raw.parse().usage
        return raw.headers["x-trunkline-replica"], usage.prompt_tokens_details.cached_tokens

    first, cold = ask("What did it eat?")
    landed = {ask(f"Question {number}: who was it?") for number in range(4)}
    assert cold == 0
    assert {replica for replica, _ in landed} == {first}
    assert all(cached > 64 for _, cached in landed)


def test_the_router_predicted_what_the_engine_reported(system: Any) -> None:
    for number in range(6):
        system.client().completions.create(model="sapling", prompt=f"{STORY} {number % 2}", max_tokens=2)
    predicted = system.counter("trunkline_route_predicted_cached_tokens_total")
    assert predicted == system.counter("trunkline_route_actual_cached_tokens_total") > 0


def score(system: Any, prompt: list[int], **options: Any) -> Any:
    """Its tokens' columns, as an evaluation harness reads them: one token is generated, and is the last entry."""
    answer = system.client().completions.create(
        model="sapling", prompt=[prompt], max_tokens=1, echo=True, logprobs=1, temperature=0, **options
    )
    return answer.choices[0].logprobs


def test_what_the_model_says_greedily_is_scored_as_the_likeliest(system: Any) -> None:
    said = system.client().completions.create(
        model="sapling",
        prompt=STORY,
        max_tokens=16,
        temperature=0,
        logprobs=0,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )
    choice = said.choices[0]
    columns = score(system, choice.prompt_token_ids + choice.token_ids)
    begin = len(choice.prompt_token_ids)
    values, tops = columns.token_logprobs[begin:-1], columns.top_logprobs[begin:-1]
    assert columns.token_logprobs[0] is None
    assert values == pytest.approx(choice.logprobs.token_logprobs, abs=0.05)
    assert values == pytest.approx([max(top.values()) for top in tops], abs=0.05)


def test_a_prompt_has_the_same_score_whatever_is_cached(system: Any) -> None:
    ids = list(range(40, 300))
    scores = [score(system, ids).token_logprobs[1:-1] for _ in range(3)]
    assert len(scores[0]) == len(ids) - 1
    assert scores[1] == pytest.approx(scores[0], abs=0.05) and scores[2] == pytest.approx(scores[0], abs=0.05)


def test_a_chat_prompt_is_scored_and_bad_words_are_not_said(system: Any) -> None:
    answer = system.client().chat.completions.create(
        model="sapling",
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        extra_body={"prompt_logprobs": 2, "bad_words": ["Paris"]},
    )
    assert "Paris" not in (answer.choices[0].message.content or "")
    first, *rest = answer.prompt_logprobs
    assert first is None and len(rest) == answer.usage.prompt_tokens - 1
    assert all(entry["logprob"] <= 0.0 for position in rest for entry in position.values())


def test_an_unknown_model_is_a_404_in_openai_s_shape(system: Any) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        system.client().completions.create(model="nobody", prompt="x")
    assert refused.value.code == "model_not_found"


def test_a_killed_worker_loses_no_request_and_comes_back(system: Any, eventually: Eventually) -> None:
    victim = system.status()["replicas"][0]
    answers: list[Any] = []

    def ask(number: int) -> None:
        answers.append(
            system.client().completions.create(
                model="sapling",
                prompt=f"Story {number}: once",
                max_tokens=300,
                extra_body={"ignore_eos": True},
            )
        )

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    eventually(lambda: system.counter("trunkline_num_requests_running") >= 8, 30, "eight running requests")
    os.kill(victim["workers"][0]["pid"], signal.SIGKILL)
    for thread in threads:
        thread.join(120)
    assert [answer.usage.completion_tokens for answer in answers] == [300] * 8

    def back() -> bool:
        now = system.replica(victim["id"])
        return bool(now["state"] == "ready" and now["incarnation"] > victim["incarnation"])

    eventually(back, 90, "the killed replica is back")


def controller_pids(system: Any) -> set[int]:
    family = psutil.Process(system.process.pid).children(recursive=True)
    return {each.pid for each in family if "ControllerActor" in " ".join(each.cmdline())}


def test_a_killed_controller_disturbs_nobody_and_its_successor_adopts(
    system: Any, eventually: Eventually
) -> None:
    before, victims = system.status()["replicas"], controller_pids(system)
    assert len(victims) == 1
    os.kill(victims.pop(), signal.SIGKILL)
    answer = system.client().completions.create(
        model="sapling", prompt="Once", max_tokens=200, extra_body={"ignore_eos": True}
    )
    assert answer.usage.completion_tokens == 200
    eventually(lambda: len(controller_pids(system)) == 1, 30, "a new controller")
    victim = before[0]["workers"][0]["pid"]
    os.kill(victim, signal.SIGKILL)

    def healed() -> bool:
        now = system.status()["replicas"]
        return [each["state"] for each in now] == ["ready"] * 2 and now[0]["workers"][0]["pid"] != victim

    eventually(healed, 90, "the successor heals what it adopted")
    assert system.status()["replicas"][1]["workers"] == before[1]["workers"]


def test_interrupting_it_leaves_no_process_no_shared_memory_and_no_socket(
    launch: Callable[..., Any], eventually: Eventually
) -> None:
    memory = set(os.listdir("/dev/shm"))
    system = launch("--replicas", "1", num_replicas=1)
    family = psutil.Process(system.process.pid).children(recursive=True)
    assert len(family) >= 4
    session = Path(re.findall(r"Logs: (.*)/logs", system.log.read_text())[0])
    assert any((session / "sockets").iterdir())
    assert system.stop() in (0, 130)
    eventually(lambda: not any(each.is_running() for each in family), 15, "every process has ended")
    assert not (session / "sockets").exists()
    assert set(os.listdir("/dev/shm")) <= memory


def test_two_ranks_serve_as_one_replica(launch: Callable[..., Any]) -> None:
    system = launch("--replicas", "1", "--tensor-parallel-size", "2", num_replicas=1)
    workers = system.status()["replicas"][0]["workers"]
    assert [each["rank"] for each in workers] == [0, 1]
    answer = system.client().completions.create(
        model="sapling", prompt="The capital of France is", max_tokens=8, temperature=0
    )
    assert "Paris" in answer.choices[0].text
