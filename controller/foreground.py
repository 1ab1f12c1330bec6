"""The driver: starts a deployment, tells how it goes, and on a signal has it drained and stopped.

It holds nothing that the deployment needs. On a Ray that is joined, killing it stops nothing; a signal makes it send
one call, which the controller finishes alone (`ray job stop` kills the driver three seconds after its SIGTERM). Who
sends SIGTERM has somebody waiting who will soon kill, so it leaves less time than a person's Ctrl-C.
Used by `python -m controller` and by `trunkline serve`.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ray.exceptions import RayError

from controller.config import DeploymentConfig
from controller.deployment import Deployment
from controller.local_ray import connected
from controller.progress import Progress, ready_text, say
from controller.status import Phase

FORCED_STOP_TIMEOUT_S = 10.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(
    config: DeploymentConfig,
    address: str | None = None,
    *,
    detach: bool = False,
    launched: Callable[[str], None] = lambda text: None,
) -> int:
    """The exit status, once everything has been stopped. With `detach` (a joined Ray only), at once."""
    began = time.monotonic()
    try:
        with connected(address) as cluster:
            say(f"Ray {cluster.address} after {time.monotonic() - began:.1f} s")
            deployment = Deployment.launch(config)
            launched(f"Trunkline starts on Ray {cluster.address}; logs: {cluster.log_directory}")
            if detach:
                return 0
            return asyncio.run(Foreground(deployment, config, cluster.log_directory, began).run())
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


class Foreground:
    def __init__(
        self, deployment: Deployment, config: DeploymentConfig, logs: Path | None, began_s: float
    ) -> None:
        self._deployment = deployment
        self._config = config
        self._logs = logs
        self._began_s = began_s
        self._progress = Progress(config.num_replicas)
        self._grace_s = config.drain_timeout_s
        self._first = asyncio.Event()
        self._second = asyncio.Event()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for each in SIGNALS:
            loop.add_signal_handler(each, self._interrupt, each)
        try:
            following = asyncio.create_task(self._follow())
            interrupted = asyncio.create_task(self._first.wait())
            await asyncio.wait([following, interrupted], return_when=asyncio.FIRST_COMPLETED)
            ended = await following if following.done() else await self._stop(following)
            if ended == 0:
                say("The deployment has stopped.")
            return ended
        except RayError as error:
            say(f"Ray has failed: {error}")
            return 1
        finally:
            self._progress.close()
            for each in SIGNALS:
                loop.remove_signal_handler(each)

    def _interrupt(self, received: signal.Signals) -> None:
        if received is signal.SIGTERM:
            self._grace_s = min(self._grace_s, self._config.sigterm_timeout_s)
        (self._second if self._first.is_set() else self._first).set()

    async def _follow(self) -> int:
        """Until somebody else has stopped the deployment, or it cannot start."""
        announced, phase = False, Phase.STARTING
        async for status in self._deployment.statuses():
            self._progress.show(status)
            phase = status.phase
            if status.phase is Phase.HOPELESS:
                self._progress.close()
                say(f"\nThe deployment cannot start: {status.detail}")
                await self._deployment.stop(0.0)
                return 1
            if status.phase is Phase.READY and not announced:
                announced = True
                self._progress.close()
                taken_s = time.monotonic() - self._began_s
                say(ready_text(self._config, status, self._logs, taken_s), sys.stdout)
        if phase is not Phase.STOPPED:
            say(f"The controller has gone; its logs are in {self._logs}.")
            return 1
        return 0

    async def _stop(self, following: asyncio.Task[int]) -> int:
        self._progress.close()
        say(f"\nStopping: running requests have {self._grace_s:g} s. Ctrl-C again stops at once.")
        stopping = asyncio.create_task(self._deployment.stop(self._grace_s))
        forced = asyncio.create_task(self._second.wait())
        await asyncio.wait([stopping, forced], return_when=asyncio.FIRST_COMPLETED)
        try:
            if self._second.is_set():
                return await self._stop_now()
            await stopping  # raises what has kept it
            return 0
        finally:
            for each in (forced, stopping, following):
                each.cancel()

    async def _stop_now(self) -> int:
        try:
            await asyncio.wait_for(self._deployment.stop(0.0), FORCED_STOP_TIMEOUT_S)
        except TimeoutError:
            say(
                f"It has not stopped in {FORCED_STOP_TIMEOUT_S:g} s. The controller goes on; its logs: {self._logs}"
            )
            return 1
        return 0
