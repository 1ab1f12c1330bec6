"""Two routers behind a real nginx, under load: one is killed; replicas are scaled, drained, upgraded. None is lost."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import yaml

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(400),
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed"),
]

ROOT = Path(__file__).resolve().parents[2]
NGINX = ROOT / "cluster_configs" / "load-balancer.nginx.conf"
MAX_TOKENS = 40
AT_ONCE = 6


def consecutive_ports(number: int) -> int:
    """The first of so many that are free now."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port: int = first.getsockname()[1]
            try:
                for beside in range(1, number):
                    socket.create_server(("127.0.0.1", port + beside)).close()
            except OSError:
                continue
            return port


def deployment(port: int, **keys: Any) -> str:
    return yaml.safe_dump(
        {
            "model": "sapling",
            "replicas": 2,
            "worker": {"num_cpus": 1},
            "routers": {"count": 2, "port": port},
            "drain_timeout_s": 5,
            **keys,
        }
    )


class Site:
    """The deployment, the nginx in front of it, and the command line beside it."""

    def __init__(self, system: Any, port: int, url: str) -> None:
        self.system = system
        self.port = port
        self.url = url
        found = re.search(r"Ray (\S+) after", system.log.read_text())
        assert found is not None, "the log names the Ray"
        self.address = found[1]

    def command(self, *arguments: str) -> str:
        """What `trunkline ARGUMENTS` prints."""
        command = [sys.executable, "-m", "trunkline", *arguments, "--address", self.address]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def router_pids(self) -> list[int]:
        family = psutil.Process(self.system.process.pid).children(recursive=True)
        return sorted(each.pid for each in family if "RouterActor" in " ".join(each.cmdline()))

    def states(self) -> dict[str, str]:
        return {each["id"]: each["state"] for each in self.system.status()["replicas"]}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, start: Callable[..., Any]) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    port = consecutive_ports(3)
    (folder / "deployment.yaml").write_text(deployment(port))
    text = NGINX.read_text().replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    text = text.replace("127.0.0.1:8001", f"127.0.0.1:{port + 1}").replace(
        "listen 8080", f"listen {port + 2}"
    )
    (folder / "nginx.conf").write_text(text.replace("/tmp/trunkline-nginx", str(folder / "nginx")))
    with start(folder / "serve.log", "--config", str(folder / "deployment.yaml"), port=port) as system:
        nginx = subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf"), "-g", "daemon off;"])
        try:
            yield Site(system, port, f"http://127.0.0.1:{port + 2}")
        finally:
            nginx.send_signal(signal.SIGQUIT)
            nginx.wait(30)


class Clients:
    """So many at once ask on and on. A stream that breaks is asked for once more, as its client would."""

    def __init__(self, url: str) -> None:
        self._client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
        self._leave = asyncio.Event()
        self.ends: Counter[str] = Counter()
        self.errors: list[BaseException] = []

    async def run(self) -> None:
        await asyncio.gather(*(self._ask_on(number) for number in range(AT_ONCE)))
        await self._client.close()

    def leave(self) -> None:
        self._leave.set()

    async def _ask_on(self, number: int) -> None:
        ask = self._stream if number % 2 else self._whole
        while not self._leave.is_set():
            try:
                await ask(f"Story {number}: once upon a time there was a fox. " * 8)
            except openai.OpenAIError as error:
                self.errors.append(error)

    async def _whole(self, prompt: str) -> None:
        answer = await self._create(prompt)
        assert answer.usage.completion_tokens == MAX_TOKENS
        self.ends["whole"] += 1

    async def _stream(self, prompt: str) -> None:
        try:
            await self._read(prompt)
        except (openai.APIConnectionError, openai.APIError) as broken:
            self.ends["broken"] += 1
            if isinstance(broken, openai.APIStatusError):
                raise
            await self._read(prompt)

    async def _read(self, prompt: str) -> None:
        stream = await self._create(prompt, stream=True, stream_options={"include_usage": True})
        usage = [chunk.usage async for chunk in stream if chunk.usage is not None]
        if not usage:
            raise openai.APIError("the stream ended early", request=None, body=None)  # type: ignore[arg-type]
        assert usage[0].completion_tokens == MAX_TOKENS
        self.ends["stream"] += 1

    async def _create(self, prompt: str, **options: Any) -> Any:
        return await self._client.completions.create(
            model="sapling", prompt=prompt, max_tokens=MAX_TOKENS, extra_body={"ignore_eos": True}, **options
        )


@asynccontextmanager
async def under_load(url: str) -> AsyncIterator[Clients]:
    """Clients that have begun; on leaving each has ended what it had begun, and at least one request more."""
    clients = Clients(url)
    running = asyncio.create_task(clients.run())
    await enough(clients, AT_ONCE)
    yield clients
    await enough(clients, 2 * AT_ONCE)
    clients.leave()
    await running


async def enough(clients: Clients, number: int) -> None:
    target, deadline_s = clients.ends.total() + number, time.monotonic() + 120
    while clients.ends.total() < target:
        assert time.monotonic() < deadline_s, f"no progress: {clients.ends} {clients.errors[:3]}"
        await asyncio.sleep(0.05)


async def test_a_killed_router_breaks_its_own_streams_and_nothing_else(site: Site) -> None:
    async with under_load(site.url) as clients:
        victim = (await asyncio.to_thread(site.router_pids))[0]
        os.kill(victim, signal.SIGKILL)
    assert clients.errors == [] and clients.ends["broken"] <= AT_ONCE // 2
    assert clients.ends["whole"] and clients.ends["stream"]


async def test_scaling_and_draining_lose_nothing(site: Site) -> None:
    async with under_load(site.url) as clients:
        assert "3 replicas are ready" in await asyncio.to_thread(site.command, "scale", "3")
        await asyncio.to_thread(site.command, "drain", "replica-0")
        assert "2 replicas are ready" in await asyncio.to_thread(site.command, "scale", "2")
    assert clients.errors == [] and clients.ends["broken"] == 0


async def test_an_upgrade_loses_nothing(site: Site, tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text(deployment(site.port, max_num_seqs=32))
    before = await asyncio.to_thread(site.states)
    async with under_load(site.url) as clients:
        printed = await asyncio.to_thread(site.command, "upgrade", str(tmp_path / "new.yaml"))
        assert "The upgrade is through." in printed
    assert clients.errors == [] and clients.ends["broken"] == 0
    assert not set(await asyncio.to_thread(site.states)) & set(before)


async def test_an_upgrade_to_another_model_loses_nothing(site: Site, tmp_path: Path) -> None:
    """Under the same name, with blocks of another size: no request can move between the two."""
    other = tmp_path / "other"
    shutil.copytree(ROOT / "sapling", other, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    new = deployment(site.port, model=str(other), served_model_name="sapling", block_size=32)
    (tmp_path / "new.yaml").write_text(new)
    before = await asyncio.to_thread(site.states)
    async with under_load(site.url) as clients:
        printed = await asyncio.to_thread(site.command, "upgrade", str(tmp_path / "new.yaml"))
        assert "The upgrade is through." in printed
    assert clients.errors == [] and clients.ends["broken"] == 0
    status = await asyncio.to_thread(site.system.status)
    assert [(each["name"], each["source"], each["block_size"]) for each in status["models"]] == [
        ("sapling", str(other), 32)
    ]
    assert not set(await asyncio.to_thread(site.states)) & set(before)
