"""The deployment as a Ray job on a Ray head of one's own: submitted, stopped, gone. Used by `lifecycle.py`.

`ray job stop` is called as its Python client does it: the second that the command takes to import Ray is not counted.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import ray
from loaded_site import MODEL, PROMPTS, Site, followed, settled
from ray.cluster_utils import Cluster
from ray.job_submission import JobStatus, JobSubmissionClient
from ray_processes import until_nothing_is_left
from system import ROOT

from controller.deployment import Deployment
from controller.names import NAMESPACE

TARGET_S = 8.0
NUM_STREAMS = 8
NUM_TOKENS = 200  # of each: they run when the job is stopped
MANY_TOKENS = 2000  # more than there is time for
PATIENCE_S = 180.0


@contextmanager
def head() -> Iterator[JobSubmissionClient]:
    """With a dashboard, which takes the jobs; this process is connected to it."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # a job's `python` is this one
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "include_dashboard": True})
    try:
        context: Any = ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False)
        client = JobSubmissionClient(f"http://{context.dashboard_url}")
        _await_agent(client)
        yield client
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


def _await_agent(client: JobSubmissionClient) -> None:
    """The head takes no job before."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            client.submit_job(entrypoint="true")
            return
        except RuntimeError:
            assert time.monotonic() < deadline_s, "the dashboard's agent has not come up"
            time.sleep(0.5)


async def measure_jobs(keys: dict[str, Any]) -> None:
    """Prints a table: an idle one, and one with requests."""
    print(f"\nAs a Ray job (target: nothing left {TARGET_S:g} s after `ray job stop`):\n")
    print("| | ready after, s | streams running at the stop | of them complete | nothing left after, s |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, head() as client:
        file = Path(folder) / "job.yaml"
        file.write_text(json.dumps(keys))  # which is YAML
        for name, num_streams, num_tokens in (
            ("idle", 0, 0),
            ("with requests", NUM_STREAMS, NUM_TOKENS),
            ("with longer ones", NUM_STREAMS, MANY_TOKENS),
        ):
            ready_s, complete, stopped_s = await _measured(client, file, num_streams, num_tokens)
            print(f"| {name} | {ready_s:.1f} | {num_streams} | {complete} | {stopped_s:.1f} |", flush=True)


async def _measured(
    client: JobSubmissionClient, file: Path, num_streams: int, num_tokens: int
) -> tuple[float, int, float]:
    began_s = time.monotonic()
    entrypoint = f"python -m controller {file}"
    job = await asyncio.to_thread(
        client.submit_job, entrypoint=entrypoint, runtime_env={"working_dir": str(ROOT)}
    )
    site = Site(deployment=await _deployment(client, job))
    async with followed(site):
        status = await site.until(settled)
        ready_s = time.monotonic() - began_s
        begun = [asyncio.Event() for _ in range(num_streams)]
        streams = [
            asyncio.create_task(_stream(status.urls[0], n, num_tokens, each)) for n, each in enumerate(begun)
        ]
        for each in begun:
            await each.wait()
        stopped_s = time.monotonic()
        await asyncio.to_thread(client.stop_job, job)
        await until_nothing_is_left()
        stopped_s = time.monotonic() - stopped_s
        return ready_s, sum(await asyncio.gather(*streams)), stopped_s


async def _deployment(client: JobSubmissionClient, job: str) -> Deployment:
    async with asyncio.timeout(PATIENCE_S):
        while (found := await asyncio.to_thread(Deployment.find)) is None:
            failed = await asyncio.to_thread(client.get_job_status, job) is JobStatus.FAILED
            assert not failed, await asyncio.to_thread(client.get_job_logs, job)
            await asyncio.sleep(0.05)
    return found


async def _stream(url: str, number: int, num_tokens: int, begun: asyncio.Event) -> bool:
    """Whether it has ended as it should."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        answer = await client.completions.create(
            model=MODEL,
            prompt=PROMPTS[number],
            max_tokens=num_tokens,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        reason = None
        try:
            async for chunk in answer:
                begun.set()
                reason = chunk.choices[0].finish_reason
        except openai.OpenAIError:
            return False
        return reason == "length"
