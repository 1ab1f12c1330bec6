"""The worker as a Ray actor: the only file of `workers` that knows Ray. Launched by `controller/`.

`run` is the sentinel: the controller waits on it and learns within milliseconds that this rank has died, and why.
It needs a `max_concurrency` of at least four: `run`, `start`, `loading` and `info` or `stop` at the same time.
"""

from __future__ import annotations

import os
from dataclasses import replace

import ray

from protocol.membership import WorkerInfo
from workers.load_progress import LoadProgress
from workers.network import talk_over
from workers.worker import Worker
from workers.worker_config import Rendezvous, WorkerAddress, WorkerConfig


class WorkerActor:
    """Made before anybody knows where it will run: `take_rank`, then everything else."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._worker: Worker
        self._loading = LoadProgress()
        self.take_rank(config.rank)

    def info(self) -> WorkerInfo:
        devices = tuple(int(each) for each in ray.get_gpu_ids())
        node: str = ray.get_runtime_context().get_node_id()
        return WorkerInfo(self._config.rank, os.getpid(), node, devices)

    def take_rank(self, rank: int) -> None:
        """Another one than it was made with, before it starts."""
        self._config = replace(self._config, rank=rank)
        host: str = self._config.host or ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        talk_over(host)
        self._worker = Worker(self._config, host)

    def rendezvous(self) -> Rendezvous:
        return self._worker.rendezvous()

    def start(self, rendezvous: Rendezvous | None) -> WorkerAddress | None:
        try:
            return self._worker.start(rendezvous, self._loading.update)
        finally:
            self._loading.finish()

    def loading(self, beyond: int) -> int:
        """Per cent of the weights that are loaded, once it is more than `beyond`; 100 ends it."""
        return self._loading.beyond(beyond)

    def run(self) -> None:
        self._worker.run()

    def stop(self, grace_s: float) -> None:
        self._worker.stop(grace_s)
