"""Which units there should be by name: how many replicas of each model, of which revision, and which of them go. Pure.

A revision says what a unit was launched with. An upgrade brings units of another revision one at a time: replicas by
starting one more than wanted (the surge) and draining an old one once it is ready, routers in their places, since their
ports are taken. Models do not share replicas; the names of units are the deployment's. Called by `reconcile.py`; knows
neither configurations nor Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

from controller.names import replica_name


@dataclass(frozen=True, slots=True)
class Observed:
    """A unit as it is. Alive from its start until its processes are gone."""

    unit: str
    alive: bool
    model: str = ""  # that it serves; empty: it is a router
    ready: bool = False  # and taken for that by every router
    draining: bool = False
    revision: str = ""
    num_own_blocks: int = 0  # cached nowhere else: what its end would lose
    failures: int = 0  # in a row
    failed_at_s: float = 0.0  # on the controller's monotonic clock; counts when failures > 0
    hopeless: bool = False  # trying again cannot help

    @property
    def is_router(self) -> bool:
        return not self.model


@dataclass(frozen=True, slots=True)
class WantedModel:
    name: str
    num_replicas: int
    revision: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    models: tuple[WantedModel, ...] = ()
    routers: tuple[str, ...] = ()
    router_revision: str = ""
    surge: int = 1  # replicas of a model beyond its wanted number while others go; 0: first drain, then start

    def find(self, name: str) -> WantedModel | None:
        return next((model for model in self.models if model.name == name), None)

    def revision_of(self, model: str) -> str:
        """Which a replica of a model, or a router where that is empty, would be started with. Empty: none would."""
        if not model:
            return self.router_revision
        wanted = self.find(model)
        return "" if wanted is None else wanted.revision


def units_to_have(wanted: Wanted, observed: Sequence[Observed]) -> dict[str, str]:
    """Those that are to be kept or started, each with its model; whatever else there is, is to go."""
    free_names = _free_names({each.unit for each in observed})
    keep: dict[str, str] = {}
    for model in wanted.models:
        replicas = [each for each in observed if each.model == model.name]
        kept, num_new = _replicas(model, wanted.surge, replicas)
        keep |= dict.fromkeys([*kept, *islice(free_names, num_new)], model.name)
    keep |= {each.unit: each.model for each in _no_longer_wanted(wanted, observed) if wanted.surge}
    return keep | dict.fromkeys(_routers(wanted, [each for each in observed if each.is_router]), "")


def _replicas(wanted: WantedModel, surge: int, observed: Sequence[Observed]) -> tuple[list[str], int]:
    """Of one model: which stay, and how many are to be added."""
    staying = sorted((each for each in observed if not each.draining), key=_worth, reverse=True)
    # What is not alive is started with the present revision, whatever it was before.
    current = [each for each in staying if not each.alive or each.revision == wanted.revision]
    current = current[: wanted.num_replicas]
    old = [each for each in staying if each.alive and each.revision != wanted.revision and each.ready]
    missing = wanted.num_replicas - len(current)
    leaving = [each for each in observed if each.draining and each.alive]
    room = wanted.num_replicas + surge - len(current) - len(old) - len(leaving)
    num_ready = sum(each.ready for each in current)
    num_kept = min(len(old), wanted.num_replicas - num_ready)
    if missing and room <= 0 and not leaving and num_ready == len(current):
        num_kept = min(num_kept, len(old) - 1)  # there is no room beside them: one makes some
    return [each.unit for each in (*current, *old[: max(0, num_kept)])], min(missing, max(0, room))


def _no_longer_wanted(wanted: Wanted, observed: Sequence[Observed]) -> list[Observed]:
    """Replicas of models that have gone from the wanted state, kept until every model that is wanted has its own."""
    for model in wanted.models:
        ready = [
            each
            for each in observed
            if each.model == model.name and each.ready and each.revision == model.revision
        ]
        if len(ready) < model.num_replicas:
            return [each for each in observed if each.alive and each.model and not wanted.find(each.model)]
    return []


def _routers(wanted: Wanted, observed: Sequence[Observed]) -> list[str]:
    """A router of another revision goes when all others are ready; its name, wanted still, is started again."""
    old = [each for each in observed if each.alive and each.revision != wanted.router_revision]
    others = {each.unit: each.ready for each in observed if not each.draining}
    for each in old:
        if all(others.get(name, False) for name in wanted.routers if name != each.unit):
            return [name for name in wanted.routers if name != each.unit]
    return list(wanted.routers)


def _worth(replica: Observed) -> tuple[bool, bool, int, int]:
    """What is lost least by its end comes last: not ready, nothing of its own, the newest name."""
    return replica.ready, replica.alive, replica.num_own_blocks, -_index(replica.unit)


def _index(unit: str) -> int:
    return int(unit.rpartition("-")[2])


def _free_names(taken: set[str]) -> Iterator[str]:
    return (name for name in map(replica_name, count()) if name not in taken)
