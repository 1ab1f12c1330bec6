"""Which units there should be by name: how many replicas, of which revision, and which of them go. Pure.

A revision says what a unit was launched with. An upgrade brings units of another revision one at a time: replicas by
starting one more than wanted (the surge) and draining an old one once it is ready, routers in their places, since
their ports are taken. Called by `reconcile.py`; knows neither configurations nor Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count


@dataclass(frozen=True, slots=True)
class Observed:
    """A unit as it is. Alive from its start until its processes are gone."""

    unit: str
    alive: bool
    is_router: bool = False
    ready: bool = False
    draining: bool = False
    revision: str = ""
    num_cached_blocks: int = 0  # what its end would lose
    failures: int = 0  # in a row
    failed_at_s: float = 0.0  # on the controller's monotonic clock; counts when failures > 0
    hopeless: bool = False  # trying again cannot help


@dataclass(frozen=True, slots=True)
class Wanted:
    num_replicas: int
    routers: tuple[str, ...] = ()
    revision: str = ""  # of replicas
    router_revision: str = ""
    surge: int = 1  # replicas beyond the wanted number while others go; 0: first drain, then start


def units_to_have(wanted: Wanted, observed: Sequence[Observed]) -> list[str]:
    """Those that are to be kept or started; whatever else there is, is to go."""
    replicas = [each for each in observed if not each.is_router]
    return [*_replicas(wanted, replicas), *_routers(wanted, [each for each in observed if each.is_router])]


def _replicas(wanted: Wanted, observed: Sequence[Observed]) -> list[str]:
    staying = sorted((each for each in observed if not each.draining), key=_worth, reverse=True)
    # What is not alive is started with the present revision, whatever it was before.
    current = [each for each in staying if not each.alive or each.revision == wanted.revision]
    current = current[: wanted.num_replicas]
    old = [each for each in staying if each.alive and each.revision != wanted.revision and each.ready]
    missing = wanted.num_replicas - len(current)
    leaving = [each for each in observed if each.draining and each.alive]
    room = wanted.num_replicas + wanted.surge - len(current) - len(old) - len(leaving)
    new = _free_names({each.unit for each in observed}, min(missing, max(0, room)))
    num_ready = sum(each.ready for each in current)
    num_kept = min(len(old), wanted.num_replicas - num_ready)
    if missing and room <= 0 and not leaving and num_ready == len(current):
        num_kept = min(num_kept, len(old) - 1)  # there is no room beside them: one makes some
    return [each.unit for each in (*current, *old[: max(0, num_kept)])] + new


def _routers(wanted: Wanted, observed: Sequence[Observed]) -> list[str]:
    """A router of another revision goes when all others are ready; its name, wanted still, is started again."""
    old = [each for each in observed if each.alive and each.revision != wanted.router_revision]
    others = {each.unit: each.ready for each in observed if not each.draining}
    for each in old:
        if all(others.get(name, False) for name in wanted.routers if name != each.unit):
            return [name for name in wanted.routers if name != each.unit]
    return list(wanted.routers)


def _worth(replica: Observed) -> tuple[bool, bool, int, int]:
    """What is lost least by its end comes last: not ready, nothing cached, the newest name."""
    return replica.ready, replica.alive, replica.num_cached_blocks, -_index(replica.unit)


def _index(unit: str) -> int:
    return int(unit.rpartition("-")[2])


def _free_names(taken: set[str], num: int) -> list[str]:
    names = (f"replica-{index}" for index in count())
    free = (name for name in names if name not in taken)
    return [next(free) for _ in range(num)]
