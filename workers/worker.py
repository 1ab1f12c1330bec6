"""One rank of a replica as a plain class: builds its runner, then leads (rank 0) or follows.

Rank 0 also owns the engine and the data plane's server. `actor.py` wraps this class for Ray; the offline `LLM` starts
followers with it in plain processes. Torch is imported in `start`, after the environment has been set.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing

from protocol.block_hash import ALGORITHM, BlockHasher
from protocol.errors import TrunklineError
from protocol.handshake import ReplicaFacts
from protocol.messages import Identity
from protocol.model_source import ModelSource, resolve_model
from workers.engine import Engine
from workers.preflight import check_model
from workers.rank_link import LeadingRunner, PlanFollower, PlanListener, free_port
from workers.runner import Runner
from workers.server_thread import ServerThread
from workers.threads import set_num_threads, useful_threads
from workers.worker_config import Rendezvous, WorkerAddress, WorkerConfig

Progress = Callable[[int, int], None]  # tensors loaded, tensors in all


class WorkerDied(TrunklineError):
    """A rank has ended with this traceback; its whole replica must be replaced."""

    code = "worker_died"


class Worker:
    """`rendezvous` (rank 0 of several), `start` on every rank at once, `run` until the end, `stop`."""

    def __init__(self, config: WorkerConfig, host: str) -> None:
        self._config = config
        self._host = host
        self._listener: PlanListener | None = None
        self._server: ServerThread | None = None
        self._follower: PlanFollower | None = None
        self._following: Runner | None = None  # kept: torch may end the process along with one in error
        self._death: Future[str | None] = Future()  # the traceback; None when it was stopped

    def rendezvous(self) -> Rendezvous:
        """Open rank 0's doors for the other ranks."""
        assert self._config.rank == 0, "only rank 0 opens a rendezvous"
        self._listener = PlanListener(self._host, self._config.secrets.hello_key)
        return Rendezvous(self._host, free_port(self._host), self._listener.port)

    def start(
        self, rendezvous: Rendezvous | None, on_progress: Progress | None = None
    ) -> WorkerAddress | None:
        """Load weights and run a forward pass through every rank. Rank 0 returns where routers reach it."""
        source = resolve_model(self._config.engine.model, served_name=self._config.engine.served_model_name)
        runner = self.build_runner(source, rendezvous, on_progress)
        if self._config.rank > 0:
            self._follow(runner, rendezvous)
            return None
        return self._lead(runner, source)

    def run(self) -> None:
        """Return when the worker was stopped; raise WorkerDied when it failed."""
        trace = self._death.result()
        if trace is not None:
            raise WorkerDied(f"rank {self._config.rank} of {self._config.replica_id} died:\n{trace}")

    def stop(self, grace_s: float) -> None:
        """Let running requests end within the grace time, then end the server and everything under it."""
        if self._server is not None:
            self._server.close(grace_s)
        self._end(None)
        if self._follower is not None:
            self._follower.close()

    def build_runner(
        self, source: ModelSource, rendezvous: Rendezvous | None, on_progress: Progress | None
    ) -> Runner:
        from workers.engine_builder import build_runner
        from workers.model.devices import choose_device
        from workers.tensor_parallel import connect_group

        config = self._config
        set_num_threads(useful_threads(check_model(config.engine, source), config.num_threads))
        size = config.engine.tensor_parallel_size
        host, port = (rendezvous.host, rendezvous.store_port) if rendezvous is not None else (self._host, 0)
        group = connect_group(
            config.rank,
            size,
            host,
            port,
            config.start_timeout_s,
            in_rank_order=config.engine.deterministic,
            device=choose_device(config.engine.device, config.rank),
        )
        own = build_runner(config.engine, source, group, on_progress)
        if config.rank > 0 or self._listener is None:
            return own
        with self._listener as listener:
            return LeadingRunner(own, listener.accept(size - 1, config.start_timeout_s))

    def _follow(self, runner: Runner, rendezvous: Rendezvous | None) -> None:
        assert rendezvous is not None, "a follower needs to know where rank 0 is"
        config = self._config
        follower = PlanFollower(
            rendezvous.host,
            rendezvous.plan_port,
            config.secrets.hello_key,
            config.rank,
            config.start_timeout_s,
        )
        self._follower, self._following = follower, runner
        threading.Thread(
            target=self._until_the_end, args=(follower, runner), name="plan-follower", daemon=True
        ).start()

    def _until_the_end(self, follower: PlanFollower, runner: Runner) -> None:
        trace = None
        try:
            with closing(runner):  # before the end is told: the process may leave as soon as it is
                follower.follow(runner)
        except BaseException:
            trace = traceback.format_exc()
        self._end(trace)

    def _lead(self, runner: Runner, source: ModelSource) -> WorkerAddress:
        from workers.engine_builder import build_engine, warm_up

        config = self._config
        engine = build_engine(config.engine, runner, config.secrets.hash_secret)
        warm_up(engine)
        self._server = ServerThread(
            engine,
            config.secrets.hello_key,
            self._facts(engine, source),
            self._host,
            self._end,
            config.hang_timeout_s,
        )
        return WorkerAddress(self._host, self._server.port)

    def _facts(self, engine: Engine, source: ModelSource) -> ReplicaFacts:
        facts, config = engine.facts, self._config
        hasher = BlockHasher(config.secrets.hash_secret, facts.block_size)
        identity = Identity(
            source.name,
            source.model_digest,
            source.tokenizer_digest,
            facts.block_size,
            hasher.fingerprint,
            ALGORITHM,
            source.template_digest,
        )
        return ReplicaFacts(
            config.replica_id, config.incarnation, identity, facts.max_model_len, facts.num_blocks
        )

    def _end(self, trace: str | None) -> None:
        """The first end is the one that counts."""
        if not self._death.done():
            self._death.set_result(trace)
