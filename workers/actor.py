"""The worker as a Ray actor: the only file of `workers` that knows Ray. Launched by `controller/`.

`run` is the sentinel: the controller waits on it and learns within milliseconds that this rank has died, and why.
It needs a `max_concurrency` of at least four: `run`, `start`, `loading` and `info` or `stop` at the same time.
"""

from __future__ import annotations

import os

import ray

from protocol.membership import WorkerInfo
from workers.load_progress import LoadProgress
from workers.worker import Worker
from workers.worker_config import Rendezvous, WorkerAddress, WorkerConfig


class WorkerActor:
    def __init__(self, config: WorkerConfig) -> None:
        self._rank = config.rank
        host: str = config.host or ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._worker = Worker(config, host)
        self._loading = LoadProgress()

    def info(self) -> WorkerInfo:
        return WorkerInfo(self._rank, os.getpid(), ray.get_runtime_context().get_node_id())

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
