"""The models that a router serves, by the names that clients ask for. Every route finds its model here.

Filled by `models/served_models.py`, which follows the membership; knows neither how a model is loaded nor who closes
it. Two versions of one name stand here while an upgrade replaces a model.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from hashlib import blake2b

from protocol.errors import Draining, InvalidRequest, ModelNotFound, NoReplica
from protocol.membership import DeploymentView, ServedModel
from router.http.metrics import EndpointMetrics
from router.http.request_router import RequestRouter
from router.http.request_sampling import SamplingDefaults
from router.http.serving import Serving
from router.router_status import ModelStatus, ServiceStatus
from router.text.tokenizer import Tokenizer

RETRY_AFTER_S = 1.0
_HASH_BYTES = 8


class Catalog:
    """Versions come and go while requests run: a request keeps the one that it was given at first."""

    def __init__(self, router_id: str = "router-0", *, rng: random.Random | None = None) -> None:
        self.metrics = EndpointMetrics()
        self.deployment: DeploymentView | None = None  # as the controller told last
        self._router_id = router_id
        self._rng = rng or random.Random()
        self._servings: dict[str, Serving] = {}  # by version
        self._by_name: dict[str, list[Serving]] = {}  # the current one last
        self._missing: dict[str, str] = {}  # names of which no version is here yet, and why
        self._draining = False

    # What is served

    def add(
        self,
        served: ServedModel,
        router: RequestRouter,
        tokenizer: Tokenizer,
        defaults: SamplingDefaults | None = None,
        files_context_tokens: int | None = None,
    ) -> None:
        metrics = self.metrics.attach(served.version, served.name, router)
        self._servings[served.version] = Serving(
            served, router, tokenizer, metrics, defaults or SamplingDefaults(), files_context_tokens
        )
        self._sort()

    def update(self, served: ServedModel) -> None:
        """The controller's newest word on a version that is here."""
        self._servings[served.version].served = served
        self._sort()

    def remove(self, version: str) -> None:
        """No request finds it any more; those that have it go on."""
        del self._servings[version]
        self.metrics.detach(version)
        self._sort()

    def miss(self, names: Mapping[str, str]) -> None:
        """Models that are to be served and of which no version is here, each with the reason."""
        self._missing = dict(names)

    def drain(self) -> None:
        """Not ready any more; whoever drains has the cores refuse requests."""
        self._draining = True

    def _sort(self) -> None:
        """By name, and the current version last, whichever was loaded first."""
        order = sorted(self._servings.values(), key=lambda it: (it.served.name, it.served.current))
        self._servings = {serving.served.version: serving for serving in order}
        self._by_name = {}
        for serving in order:
            self._by_name.setdefault(serving.served.name, []).append(serving)

    # Which of them

    @property
    def names(self) -> tuple[str, ...]:
        """Of the models that can be asked for now."""
        return tuple(self._by_name)

    def current(self, name: str) -> Serving:
        """What the name stands for. Raises ModelNotFound, NoReplica."""
        return self._versions(name)[-1]

    def pick(self, name: str | None, tenant: bytes = b"", session: str | None = None) -> Serving:
        """What a request for this model runs with; a tenant's session comes to the same one again.

        None: the only model. Raises InvalidRequest where there are several, ModelNotFound, NoReplica.
        """
        versions = self._only() if name is None else self._by_name.get(name) or self._versions(name)
        return versions[0] if len(versions) == 1 else self._share(versions, tenant, session)

    def _share(self, versions: Sequence[Serving], tenant: bytes, session: str | None) -> Serving:
        """By their numbers of accepting replicas, so that the traffic goes over as the replicas do.

        As the older version stands first, its shrinking share gives sessions away and takes none back.
        """
        weights = [serving.router.num_accepting for serving in versions]
        point = (self._rng.random() if session is None else _point(tenant, session)) * sum(weights)
        for serving, weight in zip(versions, weights, strict=True):
            if point < weight:
                return serving
            point -= weight
        return versions[-1]  # nobody accepts: the request waits for the current one's replicas

    def _only(self) -> list[Serving]:
        names = self._known
        if len(names) > 1:
            raise InvalidRequest(
                f"several models are served here: set model to {_either(names)}", param="model"
            )
        if not names:
            raise _nothing()
        return self._versions(names[0])

    def _versions(self, name: str) -> list[Serving]:
        versions = self._by_name.get(name)
        if versions is not None:
            return versions
        if name in self._missing:
            raise NoReplica(
                f"the model {name!r} is not here: {self._missing[name]}", retry_after_s=RETRY_AFTER_S
            )
        names = self._known
        if not names:
            raise _nothing()
        raise ModelNotFound(f"the model {name!r} is not served here: ask for {_either(names)}", param="model")

    @property
    def _known(self) -> list[str]:
        return [*self._by_name, *self._missing]

    # All of them

    @property
    def ready(self) -> bool:
        """Requests are worth sending: some model has a replica, or would get one by being asked for."""
        return not self._draining and any(
            serving.router.ready or serving.served.scales_to_zero for serving in self._servings.values()
        )

    def check_ready(self) -> None:
        """Raises Draining or NoReplica when no request could run now."""
        if self._draining:
            raise Draining("this router is draining: ask another one", retry_after_s=RETRY_AFTER_S)
        if not self.ready:
            raise NoReplica("no replica is ready to serve", retry_after_s=RETRY_AFTER_S)

    async def reset_prefix_cache(self, name: str | None = None) -> int:
        """Blocks in use, over the replicas of one model or all. Raises ModelNotFound, NoReplica."""
        servings = list(self._servings.values()) if name is None else list(self._versions(name))
        return sum(await asyncio.gather(*(serving.router.reset_prefix_cache() for serving in servings)))

    def status(self) -> ServiceStatus:
        models = tuple(
            ModelStatus(serving.served, serving.router.status()) for serving in self._servings.values()
        )
        missing = tuple(self._missing.items())
        return ServiceStatus(self._router_id, self.ready, self._draining, models, self.deployment, missing)


def _nothing() -> NoReplica:
    return NoReplica("no model is served here now", retry_after_s=RETRY_AFTER_S)


def _point(tenant: bytes, session: str) -> float:
    """From 0 to 1, the same at every router."""
    owned = tenant + session.encode(errors="surrogatepass")
    digest = blake2b(owned, digest_size=_HASH_BYTES).digest()
    return int.from_bytes(digest) / 2.0 ** (8 * _HASH_BYTES)


def _either(names: Sequence[str]) -> str:
    return " or ".join(map(repr, names))
