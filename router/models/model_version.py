"""One version of a model at this router: being read, served by a core of its own, or impossible; then on its way out.

Made by `served_models.py` for every version that the membership names.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from protocol.deployment_secrets import DeploymentSecrets
from protocol.membership import ReplicaInfo, ServedModel
from router.models.model_files import ModelFiles
from router.router import Router
from router.router_config import RouterConfig
from router.router_status import RouterCounters

log = logging.getLogger(__name__)


class ModelVersion:
    """One object for a version's whole time in the membership, whatever else that says of it meanwhile."""

    def __init__(self, served: ServedModel) -> None:
        self.served = served
        self.files: ModelFiles | None = None
        self.router: Router | None = None  # once the files are read
        self.error: Exception | None = None  # why they cannot be

    @property
    def absence(self) -> str:
        """Why it is not served, for clients: what is wrong with the files is the operator's business."""
        return "it is being loaded" if self.error is None else "it could not be loaded"

    async def load(
        self,
        read: Callable[[ServedModel], ModelFiles],
        router_id: str,
        secrets: DeploymentSecrets,
        counters: RouterCounters,
        changed: Callable[[], None],
    ) -> None:
        """Has a core afterwards, or an error."""
        try:
            self.files = await asyncio.to_thread(read, self.served)
            config = RouterConfig(router_id, admission_timeout_s=self.served.admission_timeout_s)
            self.router = Router(config, self.files.identity, secrets, counters=counters, changed=changed)
        except Exception as error:
            log.error("%s cannot be served as %r: %s", self.served.source, self.served.name, error)
            self.error = error

    def update(self, served: ServedModel) -> None:
        """Take the controller's newest word on it."""
        self.served = served
        if self.router is not None:
            self.router.set_admission_timeout(served.admission_timeout_s)

    async def set_replicas(self, replicas: Sequence[ReplicaInfo]) -> None:
        """Of all the membership's, its own."""
        if self.router is not None:
            await self.router.set_replicas([info for info in replicas if info.serves == self.served.version])

    async def leave(self) -> None:
        """Nobody finds it any more. Whoever waits in it may go on as long as a request may; then its core is closed."""
        try:
            await self.set_replicas(())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.served.admission_timeout_s):
                    await self._idle()
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        if self.router is not None:
            await self.router.aclose()

    async def _idle(self) -> None:
        if self.router is not None:
            await self.router.idle()
