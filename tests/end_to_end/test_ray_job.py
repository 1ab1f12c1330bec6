"""The same system as a job on a running Ray head: submitted with its working directory, stopped by `ray job stop`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parent.parent.parent
RAY = str(Path(sys.executable).parent / "ray")
ENVIRONMENT = {
    **os.environ,
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # the job's `python` has the dependencies
}
Eventually = Callable[[Callable[[], bool], float, str], None]


@dataclass(frozen=True)
class Head:
    """A Ray head of its own, as an operator runs one."""

    process: subprocess.Popen[bytes]
    dashboard: str

    def job(self, *arguments: str) -> str:
        command = [RAY, "job", *arguments, "--address", self.dashboard]
        if "--" in arguments:
            at = arguments.index("--")
            command = [RAY, "job", *arguments[:at], "--address", self.dashboard, *arguments[at:]]
        done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


def free_ports(count: int) -> list[int]:
    with ExitStack() as open_together:
        probes = [open_together.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


@pytest.fixture
def head(tmp_path: Path, eventually: Eventually) -> Iterator[Head]:
    gcs, dashboard, agent, client = free_ports(4)
    options = {
        "--port": gcs,
        "--dashboard-port": dashboard,
        "--dashboard-agent-listen-port": agent,
        "--ray-client-server-port": client,
        "--num-cpus": 2,
        "--dashboard-host": "127.0.0.1",
        "--node-ip-address": "127.0.0.1",
    }
    command = [RAY, "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"{name}={value}" for name, value in options.items()]
    with (tmp_path / "head.log").open("wb") as log:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT)
    running = Head(process, f"http://127.0.0.1:{dashboard}")
    try:
        eventually(lambda: _answers(dashboard), 90, "the dashboard answers")
        yield running
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        for each in family:
            if each.is_running():
                each.kill()


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1.0):
            return True
    except OSError:
        return False


@pytest.fixture
def config(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """`cluster_configs/local.yaml` on a free port, inside the working directory as a job needs it."""
    port = free_ports(1)[0]
    text = (ROOT / "cluster_configs" / "local.yaml").read_text()
    file = ROOT / "cluster_configs" / f"test-{port}.yaml"
    file.write_text(text.replace("port: 8000", f"port: {port}"))
    yield f"cluster_configs/{file.name}", port
    file.unlink()


def test_a_job_serves_the_same_system_and_stops_with_it(
    head: Head, config: tuple[str, int], at_url: Callable[[str], Any], eventually: Eventually
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
