"""How the actors and placement groups of a deployment are called in Ray, and what a name says.

A name holds the incarnation, so a new start never meets the name of the one that is still going down, and a
restarted controller knows from a name alone what it has found.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NODE_DIGITS = 12  # enough to tell nodes apart, short enough to read
NAMESPACE = "trunkline"
CONTROLLER = "controller"
GROUP_PREFIX = "trunkline."
_WORKER = re.compile(r"^(?P<unit>replica-\d+)\.(?P<incarnation>\d+)\.rank-(?P<rank>\d+)$")
_ROUTER = re.compile(r"^(?P<unit>router-[0-9a-f]+)\.(?P<incarnation>\d+)$")


@dataclass(frozen=True, slots=True)
class ActorName:
    """A worker of a replica, or a router (rank None)."""

    unit: str  # replica-0, router-0
    incarnation: int
    rank: int | None = None

    def __str__(self) -> str:
        rank = "" if self.rank is None else f".rank-{self.rank}"
        return f"{self.unit}.{self.incarnation}{rank}"


def parse_actor_name(name: str) -> ActorName | None:
    """None: not one of ours."""
    if found := _WORKER.match(name):
        return ActorName(found["unit"], int(found["incarnation"]), int(found["rank"]))
    if found := _ROUTER.match(name):
        return ActorName(found["unit"], int(found["incarnation"]))
    return None


def replica_name(index: int) -> str:
    return f"replica-{index}"


def router_name(index: int) -> str:
    return f"router-{index}"


def router_on(node: str) -> str:
    """Of the one router of a node, by the node's id in Ray."""
    return f"router-{node[:_NODE_DIGITS]}"


def is_router(unit: str) -> bool:
    return unit.startswith("router-")


def group_name(replica_id: str, incarnation: int) -> str:
    """A replica's placement group."""
    return f"{GROUP_PREFIX}{replica_id}.{incarnation}"
