"""Two models behind one endpoint, on real Ray: each answers by its name, and neither knows of the other."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "Once upon a time there was a fox who lived in a small house near the river. " * 4


@pytest.fixture(scope="module")
def system(
    tmp_path_factory: pytest.TempPathFactory,
    start: Callable[..., Any],
    free_ports: Callable[[int], list[int]],
) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("models")
    other = folder / "seedling"
    shutil.copytree(ROOT / "sapling", other, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    models = [
        {"model": "sapling", "replicas": 2},
        {"model": str(other), "served_model_name": "seedling", "replicas": 1, "block_size": 32},
    ]
    (folder / "models.yaml").write_text(yaml.safe_dump({"models": models, "worker": {"num_cpus": 1}}))
    (port,) = free_ports(1)
    options = ("--config", str(folder / "models.yaml"))
    with start(folder / "serve.log", *options, port=port, num_replicas=3) as running:
        yield running


def ask(system: Any, model: str) -> Any:
    raw = system.client().completions.with_raw_response.create(
        model=model, prompt=PROMPT, max_tokens=4, temperature=0
    )
    answer = raw.parse()
    assert answer.model == model
    return raw.headers["x-trunkline-replica"], answer.usage.prompt_tokens_details.cached_tokens


def replicas_of(system: Any, model: str) -> set[str]:
    return {each["id"] for each in system.status()["replicas"] if each["model"] == model}


def test_a_request_goes_to_a_replica_of_the_model_that_it_names(system: Any) -> None:
    for model in ("sapling", "seedling"):
        cold, warm = ask(system, model), ask(system, model)
        assert {cold[0], warm[0]} <= replicas_of(system, model)
        assert cold[1] == 0 and warm[1] > 32


def test_the_models_are_listed_and_one_must_be_named(system: Any) -> None:
    client = system.client()
    assert [model.id for model in client.models.list()] == ["sapling", "seedling"]
    with pytest.raises(openai.NotFoundError, match="seedling"):
        client.completions.create(model="oak", prompt="a")
    with pytest.raises(openai.BadRequestError, match=r"sapling.*seedling"):
        client.completions.create(model=None, prompt="a")


def test_one_models_death_is_nothing_to_the_other(
    system: Any, eventually: Callable[[Callable[[], bool], float, str], None]
) -> None:
    (only,) = replicas_of(system, "seedling")
    os.kill(system.replica(only)["workers"][0]["pid"], signal.SIGKILL)
    before = {name: system.replica(name)["incarnation"] for name in replicas_of(system, "sapling")}
    assert ask(system, "sapling")[0] in before
    eventually(
        lambda: system.replica(only)["incarnation"] == 2 and system.replica(only)["accepting"], 60, "healed"
    )
    assert ask(system, "seedling") == (only, 0)
    assert {name: system.replica(name)["incarnation"] for name in before} == before
