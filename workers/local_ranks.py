"""A replica inside one process, for the offline `LLM`: rank 0 here, any other rank in a process of its own.

The same `Worker` that Ray wraps runs in those processes. They end when rank 0's sockets do.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from multiprocessing.process import BaseProcess

from protocol.deployment_secrets import DeploymentSecrets
from protocol.model_source import ModelSource
from workers.engine import Engine
from workers.engine_config import EngineConfig
from workers.preflight import check_model
from workers.threads import openmp_environment
from workers.worker import Progress, Worker
from workers.worker_config import Rendezvous, WorkerConfig

LOOPBACK = "127.0.0.1"
JOIN_TIMEOUT_S = 5.0


class LocalRanks:
    """Owns the engine and the follower processes; `close` ends both."""

    def __init__(
        self, config: EngineConfig, source: ModelSource, secrets: DeploymentSecrets, on_progress: Progress
    ) -> None:
        check_model(config, source)
        _let_threads_sleep()
        from workers.engine_builder import build_engine  # brings torch

        self._followers: list[BaseProcess] = []
        leader = Worker(_worker_config(config, secrets, 0), LOOPBACK)
        rendezvous = None
        if config.tensor_parallel_size > 1:
            rendezvous = leader.rendezvous()
            self._start_followers(config, secrets, rendezvous)
        try:
            runner = leader.build_runner(source, rendezvous, on_progress)
        except BaseException:
            self._end_followers()
            raise
        self.engine: Engine = build_engine(config, runner, secrets.hash_secret)

    def close(self) -> None:
        try:
            self.engine.close()
        finally:
            self._end_followers()

    def _start_followers(
        self, config: EngineConfig, secrets: DeploymentSecrets, rendezvous: Rendezvous
    ) -> None:
        spawn = multiprocessing.get_context("spawn")  # a forked torch does not survive its threads
        for rank in range(1, config.tensor_parallel_size):
            follower = spawn.Process(
                target=follow, args=(_worker_config(config, secrets, rank), rendezvous), daemon=True
            )
            follower.start()
            self._followers.append(follower)

    def _end_followers(self) -> None:
        for follower in self._followers:
            follower.join(JOIN_TIMEOUT_S)
            if follower.is_alive():
                follower.kill()
                follower.join()
            follower.close()
        self._followers.clear()


def _let_threads_sleep() -> None:
    """OpenMP reads this once, when torch loads. Where torch is here already, its waiting threads spin."""
    if "torch" not in sys.modules:
        for name, value in openmp_environment(1).items():
            if name != "OMP_NUM_THREADS":  # torch is told; a user's other libraries keep theirs
                os.environ.setdefault(name, value)


def follow(config: WorkerConfig, rendezvous: Rendezvous) -> None:
    """The whole life of a follower's process. A terminal's Ctrl-C reaches it too, but is rank 0's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = Worker(config, LOOPBACK)
    worker.start(rendezvous)
    worker.run()


def _worker_config(config: EngineConfig, secrets: DeploymentSecrets, rank: int) -> WorkerConfig:
    return WorkerConfig("local", 0, rank, config, secrets, num_threads=_threads_per_rank(config))


def _threads_per_rank(config: EngineConfig) -> int:
    """An even share of the cores, unless the user's environment says otherwise."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() else max(1, (os.cpu_count() or 1) // config.tensor_parallel_size)
