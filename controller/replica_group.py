"""One incarnation of a replica on Ray: a placement group and one worker actor a rank, which live and die together.

A lone rank cannot come back (its peers hold a process group and KV that it lacks), so the death of any ends all.
Implements `Launched` for `controller.py`; which class the actors are is the launcher's choice.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup

from controller.actor_calls import ADOPT_TIMEOUT_S, answer, detached
from controller.deaths import explain, process_died, start_failed
from controller.log import log
from controller.model_config import ModelConfig
from controller.names import NAMESPACE, ActorName
from controller.placement import at_rank, find_group, rank_order, release, reserve, waits_for
from controller.processes import end_everywhere
from controller.unit import StartFailed, Tell, UnitFacts
from protocol.deployment_secrets import DeploymentSecrets
from protocol.membership import WorkerInfo
from workers.threads import openmp_environment
from workers.worker_config import WorkerConfig

UNPLACED_AFTER_S = 2.0  # a worker that has not answered by then may be waiting for resources: say so
HEARTBEAT_S = 5.0
SETTLE_S = 0.5  # after the first rank has failed: how long another may take to show the cause


class ReplicaGroup:
    """`model` is None where a former controller's replica is adopted."""

    def __init__(
        self,
        replica_id: str,
        incarnation: int,
        model: ModelConfig | None,
        secrets: DeploymentSecrets,
        worker_class: type,
        silent_after_s: float,
    ) -> None:
        self._replica_id = replica_id
        self._incarnation = incarnation
        self._model = model
        self._secrets = secrets
        self._class = worker_class
        self._silent_after_s = silent_after_s
        self._group: PlacementGroup | None = None
        self._workers: list[Any] = []
        self._infos: tuple[WorkerInfo, ...] = ()

    async def start(self, tell: Tell) -> UnitFacts:
        began = time.monotonic()
        await asyncio.to_thread(self._create)
        self._infos = await self._placed(tell)
        placed = time.monotonic()
        tell("loads weights")
        try:
            async with asyncio.timeout(self._config.start_timeout_s):
                host, port = await self._start_ranks(tell)
        except TimeoutError:
            limit = self._config.start_timeout_s
            raise StartFailed(
                f"{self._replica_id} was not ready within {limit:g} s (start_timeout_s)"
            ) from None
        taken = f"processes {placed - began:.1f} s, weights and warm-up {time.monotonic() - placed:.1f} s"
        log.info("%s.%d is ready: %s", self._replica_id, self._incarnation, taken)
        return UnitFacts(host, port, self._infos)

    async def adopt(self, facts: UnitFacts) -> bool:
        """Take over what a former controller started; False when it is no longer whole."""
        names = [str(self._name(rank)) for rank in range(len(facts.workers))]
        try:
            self._workers = [await asyncio.to_thread(ray.get_actor, name, NAMESPACE) for name in names]
            self._group = await asyncio.to_thread(find_group, self._replica_id, self._incarnation)
            self._infos = facts.workers
            async with asyncio.timeout(ADOPT_TIMEOUT_S):
                found = await asyncio.gather(*(answer(worker.info.remote()) for worker in self._workers))
        except (ValueError, TimeoutError, RayError):
            return False
        self._workers = [self._workers[place] for place in _by_rank(found)]
        return tuple(sorted(found, key=lambda info: info.rank)) == facts.workers

    async def watch(self) -> str:
        death = asyncio.create_task(self._first_death())
        silence = asyncio.create_task(self._first_silence())
        try:
            done, _ = await asyncio.wait([death, silence], return_when=asyncio.FIRST_COMPLETED)
            return (death if death in done else silence).result()
        finally:
            death.cancel()
            silence.cancel()

    async def _first_death(self) -> str:
        sentinels = {
            asyncio.create_task(self._sentinel(worker)): rank for rank, worker in enumerate(self._workers)
        }
        try:
            done, pending = await asyncio.wait(sentinels, return_when=asyncio.FIRST_COMPLETED)
            if pending and not any(process_died(task.result()) for task in done):
                late, _ = await asyncio.wait(pending, timeout=SETTLE_S)
                done |= late  # a rank that ended well, or lost its peer, is not the cause
            ended = {sentinels[task]: task.result() for task in sentinels if task in done}
            return self._cause(ended)
        finally:
            for task in sentinels:
                task.cancel()

    async def _first_silence(self) -> str:
        """A process that stands still, or a host that has gone, ends no call: it is asked, again and again."""
        limit_s = self._silent_after_s
        while True:
            await asyncio.sleep(min(HEARTBEAT_S, limit_s))
            asked = [answer(worker.info.remote()) for worker in self._workers]
            answers = [asyncio.create_task(each) for each in asked]
            done, silent = await asyncio.wait(answers, timeout=limit_s)
            for task in silent:
                task.cancel()
            for task in done:
                task.exception()  # of a death, which others tell
            if silent:
                rank = min(answers.index(task) for task in silent)
                return f"rank {rank} of {self._replica_id} has not answered for {limit_s:g} s"

    async def drain(self, grace_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s + 2.0):
                stops = [answer(worker.stop.remote(grace_s)) for worker in self._workers]
                await asyncio.gather(*stops, return_exceptions=True)

    async def kill(self) -> None:
        for worker in self._workers:
            await asyncio.to_thread(ray.kill, worker)
        if self._group is not None:
            await release(self._group)
        survivors = await end_everywhere(self._infos)
        if survivors:
            log.error(
                "%s.%d: processes %s could not be ended", self._replica_id, self._incarnation, survivors
            )

    @property
    def _config(self) -> ModelConfig:
        assert self._model is not None, "what a former controller has started is not started again"
        return self._model

    def _name(self, rank: int) -> ActorName:
        return ActorName(self._replica_id, self._incarnation, rank)

    def _create(self) -> None:
        worker, size = self._config.worker, self._config.tensor_parallel_size
        self._group = reserve(self._replica_id, self._incarnation, size, worker)
        environment = {**openmp_environment(worker.num_threads), **worker.env}
        for rank in range(size):
            actor = detached(
                self._class,
                str(self._name(rank)),
                num_cpus=worker.num_cpus,
                num_gpus=worker.num_gpus,
                resources=worker.resources or None,
                scheduling_strategy=at_rank(self._group, rank),
                runtime_env={"env_vars": environment},
            )
            self._workers.append(actor.remote(self._worker_config(rank)))

    def _worker_config(self, rank: int) -> WorkerConfig:
        return WorkerConfig(
            self._replica_id,
            self._incarnation,
            rank,
            self._config.engine(),
            self._secrets,
            num_threads=self._config.worker.num_threads,
            start_timeout_s=self._config.start_timeout_s,
            hang_timeout_s=self._config.hang_timeout_s,
        )

    async def _placed(self, tell: Tell) -> tuple[WorkerInfo, ...]:
        """Every rank's process, once all have one. There is no time limit: nodes may still have to come."""
        assert self._group is not None, "workers without a placement group"
        tell("starts its workers")
        infos = asyncio.gather(*(self._ask(rank, "info") for rank in range(len(self._workers))))
        try:
            while not (await asyncio.wait([infos], timeout=UNPLACED_AFTER_S))[0]:
                tell(await asyncio.to_thread(waits_for, self._group) or "starts its workers")
            return await self._ranked(await infos)
        finally:
            infos.cancel()

    async def _ranked(self, infos: Sequence[WorkerInfo]) -> tuple[WorkerInfo, ...]:
        """Ranks by where the workers have come to lie. An actor's name keeps the number that it was made with."""
        order = rank_order(infos)
        self._workers = [self._workers[place] for place in order]
        await asyncio.gather(
            *(
                self._ask(rank, "take_rank", rank)
                for rank, place in enumerate(order)
                if rank != infos[place].rank
            )
        )
        return tuple(replace(infos[place], rank=rank) for rank, place in enumerate(order))

    async def _start_ranks(self, tell: Tell) -> tuple[str, int]:
        """Every rank at once: they wait for each other inside."""
        rendezvous = await self._ask(0, "rendezvous") if len(self._workers) > 1 else None
        starts = [self._ask(rank, "start", rendezvous) for rank in range(len(self._workers))]
        following = asyncio.create_task(self._follow_loading(tell))
        try:
            address, *_ = await asyncio.gather(*starts)
        finally:
            following.cancel()
        assert address is not None, "rank 0 has no address"
        return address.host, address.port

    async def _follow_loading(self, tell: Tell) -> None:
        """Rank 0 speaks for all: their shares are equal."""
        percent = 0
        with contextlib.suppress(RayError):  # `start` tells what happened
            while percent < 100:
                percent = await answer(self._workers[0].loading.remote(percent))
                tell(f"loads weights: {percent} %" if percent < 100 else "warms up")

    async def _ask(self, rank: int, method: str, *arguments: object) -> Any:
        try:
            return await answer(getattr(self._workers[rank], method).remote(*arguments))
        except RayError as error:
            raise start_failed(f"rank {rank} of {self._replica_id}", error) from None

    @staticmethod
    async def _sentinel(worker: Any) -> RayError | None:
        try:
            await answer(worker.run.remote())
        except RayError as error:
            return error
        return None

    def _cause(self, ended: dict[int, RayError | None]) -> str:
        """A process that died outweighs a traceback, that a rank which merely ended; then the lower rank."""
        rank = min(ended, key=lambda rank: (not process_died(ended[rank]), ended[rank] is None, rank))
        return explain(f"rank {rank} of {self._replica_id}", ended[rank])


def _by_rank(infos: Sequence[WorkerInfo]) -> list[int]:
    return sorted(range(len(infos)), key=lambda place: infos[place].rank)
