"""The same system as a job on a running Ray head: submitted with its working directory, stopped by `ray job stop`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parent.parent.parent
Eventually = Callable[[Callable[[], bool], float, str], None]


@pytest.fixture
def head(tmp_path: Path, start_head: Callable[..., Any]) -> Iterator[Any]:
    with start_head(tmp_path / "head.log", "--num-cpus=2") as running:
        yield running


@pytest.fixture
def config(free_ports: Callable[[int], list[int]]) -> Iterator[tuple[str, int]]:
    """`cluster_configs/local.yaml` on a free port, inside the working directory as a job needs it."""
    port = free_ports(1)[0]
    text = (ROOT / "cluster_configs" / "local.yaml").read_text()
    file = ROOT / "cluster_configs" / f"test-{port}.yaml"
    file.write_text(text.replace("port: 8000", f"port: {port}"))
    yield f"cluster_configs/{file.name}", port
    file.unlink()


def test_a_job_serves_the_same_system_and_stops_with_it(
    head: Any, config: tuple[str, int], at_url: Callable[[str], Any], eventually: Eventually
) -> None:
    file, port = config
    head.job("submit", "--working-dir", ".", "--submission-id", "serve", "--no-wait", "--",
             "python", "-m", "controller", file)  # fmt: skip
    system = at_url(f"http://127.0.0.1:{port}")

    def serves() -> bool:
        assert "FAILED" not in head.job("status", "serve"), head.job("logs", "serve")
        return bool(system.is_ready())

    eventually(serves, 150, "the job serves")
    answer = system.client().completions.create(
        model="sapling", prompt="The capital of France is", max_tokens=8, temperature=0
    )
    assert "Paris" in answer.choices[0].text
    pids = [worker["pid"] for replica in system.status()["replicas"] for worker in replica["workers"]]
    head.job("stop", "serve")
    eventually(lambda: not any(map(psutil.pid_exists, pids)), 60, "the workers have ended")
