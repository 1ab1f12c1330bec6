"""Follows the membership: loads the models that it names, gives each version its replicas, closes those that have left.

Owned by `service.py`, which passes the controller's questions on to it. What can be asked for stands in the catalog.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable

from protocol.demand import RouterDemand
from protocol.deployment_secrets import DeploymentSecrets
from protocol.membership import Membership, ReplicaInfo, ServedModel
from router.http.catalog import Catalog
from router.models.bell import Bell
from router.models.model_files import ModelFiles
from router.models.model_version import ModelVersion
from router.router import Router
from router.router_status import RouterCounters


class ServedModels:
    """Lives in one event loop, from construction to `aclose`."""

    def __init__(
        self,
        router_id: str,
        secrets: DeploymentSecrets,
        catalog: Catalog,
        read: Callable[[ServedModel], ModelFiles] = ModelFiles.read,
    ) -> None:
        self._router_id = router_id
        self._secrets = secrets
        self._catalog = catalog
        self._read = read  # on a thread
        self._versions: dict[str, ModelVersion] = {}
        self._loads: dict[ModelVersion, asyncio.Task[None]] = {}  # those that go on
        self._leaves: dict[asyncio.Task[None], ModelVersion] = {}
        self._counters: defaultdict[str, RouterCounters] = defaultdict(
            RouterCounters
        )  # by name: they never fall
        self._replicas: dict[str, ReplicaInfo] = {}
        self._named = asyncio.Event()  # some model has been
        self._bell = Bell()  # rung after whatever may make a replica accepted or impossible
        self._draining = False

    # The membership

    async def begun(self) -> None:
        """Until a membership names models and those are loaded. Raises what makes all of them impossible.

        One that cannot be loaded must not keep the others from their clients: `meet` tells of it.
        """
        await self._named.wait()
        first = list(self._versions.values())
        if loads := list(self._loads.values()):
            await asyncio.wait(loads)
        errors = [version.error for version in first if version.error is not None]
        if errors and len(errors) == len(first):
            raise errors[0]

    async def follow(self, membership: Membership) -> None:
        """What it names is loaded aside: neither this nor any request waits for that."""
        self._catalog.deployment = membership.deployment
        self._replicas = {info.replica_id: info for info in membership.replicas}
        wanted = {served.version: served for served in membership.models}
        for left in [version for version in self._versions if version not in wanted]:
            self._dismiss(self._versions.pop(left))
        for served in wanted.values():
            if served.version in self._versions:
                self._update(self._versions[served.version], served)
            else:
                self._begin(served)
        self._show_missing()
        await asyncio.gather(*(self._populate(version) for version in self._versions.values()))
        self._bell.ring()
        if self._versions:
            self._named.set()

    def _begin(self, served: ServedModel) -> None:
        version = self._versions[served.version] = ModelVersion(served)
        task = self._loads[version] = asyncio.create_task(self._load(version))
        task.add_done_callback(lambda _: self._loads.pop(version))

    async def _load(self, version: ModelVersion) -> None:
        counters = self._counters[version.served.name]
        await version.load(self._read, self._router_id, self._secrets, counters, self._bell.ring)
        if version.router is not None and version.files is not None:
            self._open(version, version.router, version.files)
        self._show_missing()
        await self._populate(version)
        self._bell.ring()

    def _open(self, version: ModelVersion, router: Router, files: ModelFiles) -> None:
        if self._draining:
            router.drain()
        self._catalog.add(
            version.served, router, files.tokenizer, files.defaults, files.source.context_tokens
        )

    def _update(self, version: ModelVersion, served: ServedModel) -> None:
        version.update(served)
        if version.router is not None:
            self._catalog.update(served)

    async def _populate(self, version: ModelVersion) -> None:
        await version.set_replicas(list(self._replicas.values()))

    def _dismiss(self, version: ModelVersion) -> None:
        if version in self._loads:
            self._loads[version].cancel()
        if version.router is not None:
            self._catalog.remove(version.served.version)
        task = asyncio.create_task(version.leave())
        self._leaves[task] = version
        task.add_done_callback(self._leaves.pop)

    def _show_missing(self) -> None:
        here = {version.served.name for version in self._versions.values() if version.router is not None}
        absent = [version for version in self._versions.values() if version.served.name not in here]
        self._catalog.miss({version.served.name: version.absence for version in absent})

    # The controller's questions

    async def meet(self, replica_id: str, incarnation: int) -> str:
        """Returns once this incarnation is sent requests: empty. Or once it is known that it will not be: why.

        The membership may name it later than this is called: whoever asks bounds how long that may take.
        """
        await self._bell.until(lambda: self._info(replica_id, incarnation))
        return await self._bell.until(lambda: self._met(replica_id, incarnation))

    def _info(self, replica_id: str, incarnation: int) -> ReplicaInfo | None:
        info = self._replicas.get(replica_id)
        return None if info is None or info.incarnation < incarnation else info

    def _met(self, replica_id: str, incarnation: int) -> str | None:
        info = self._info(replica_id, incarnation)
        if info is None:
            return "it has left the deployment"
        version = self._versions.get(info.serves)
        if version is None:
            return None
        if version.error is not None:
            return f"{self._router_id} cannot load its model: {version.error}"
        return None if version.router is None else version.router.met(replica_id, incarnation)

    async def drain_replica(self, replica_id: str, deadline_s: float) -> bool:
        """See `Router.drain_replica`."""
        drains = (router.drain_replica(replica_id, deadline_s) for router in self._routers())
        return all(await asyncio.gather(*drains))

    def demand(self) -> tuple[RouterDemand, ...]:
        return tuple(
            version.router.demand(name)
            for name, version in self._versions.items()
            if version.router is not None
        )

    async def own_blocks(self) -> tuple[tuple[str, int], ...]:
        """How many blocks each replica alone holds, of all that serve its version; nothing of one that is BLIND."""
        told = await asyncio.gather(*(router.own_blocks() for router in self._routers()))
        return tuple(each for blocks in told for each in blocks)

    def drain(self) -> None:
        """No longer ready, and no new requests; those that run end."""
        self._draining = True
        self._catalog.drain()
        for router in self._routers():
            router.drain()

    def give_up(self) -> None:
        """Requests that are still open end with an error, in versions that are on their way out too."""
        for version in (*self._versions.values(), *self._leaves.values()):
            if version.router is not None:
                version.router.give_up()

    async def aclose(self) -> None:
        """What still runs ends with an error, in versions that were on their way out too."""
        tasks = [*self._loads.values(), *self._leaves]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await asyncio.gather(*(version.aclose() for version in self._versions.values()))

    def _routers(self) -> list[Router]:
        return [version.router for version in self._versions.values() if version.router is not None]
