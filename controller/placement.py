"""Where a replica's workers go: one placement group a replica, one bundle a worker. Ranks follow from where they are.

Groups are named and detached: otherwise Ray would remove them, and their workers, with the controller that made them.
A group that does not fit stays pending, which is what Ray's autoscaler takes as demand for nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

from ray._private.state import available_resources_per_node
from ray.util import get_placement_group, placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from controller.model_config import WorkerResources
from controller.names import group_name
from protocol.membership import WorkerInfo


def reserve(replica_id: str, incarnation: int, size: int, worker: WorkerResources) -> PlacementGroup:
    """Ask for a group; actors put into it wait until Ray has placed it."""
    labels = [worker.label_selector] * size if worker.label_selector else None
    group: PlacementGroup = placement_group(
        [worker.bundle] * size,
        strategy=worker.placement,
        name=group_name(replica_id, incarnation),
        lifetime="detached",
        bundle_label_selector=labels,
    )
    return group


def find_group(replica_id: str, incarnation: int) -> PlacementGroup | None:
    try:
        group: PlacementGroup = get_placement_group(group_name(replica_id, incarnation))
    except ValueError:
        return None
    return group


def at_rank(group: PlacementGroup, rank: int) -> PlacementGroupSchedulingStrategy:
    return PlacementGroupSchedulingStrategy(
        group, placement_group_bundle_index=rank, placement_group_capture_child_tasks=False
    )


def waits_for(group: PlacementGroup) -> str:
    """A sentence while Ray has not placed the group, else nothing."""
    table = placement_group_table(group)
    if table.get("state") == "CREATED":
        return ""
    bundles = list(table["bundles"].values())
    free = list(available_resources_per_node().values())  # type: ignore[no-untyped-call]
    return lacking(bundles, table["strategy"] == "STRICT_PACK", free)


def lacking(
    bundles: Sequence[Mapping[str, float]], on_one_node: bool, free: Sequence[Mapping[str, float]]
) -> str:
    """What no node has enough of. `free`: each node's resources that nobody uses."""
    num_bundles = len(bundles) if on_one_node else 1
    wanted = {name: amount * num_bundles for name, amount in bundles[0].items()}
    rest = "" if on_one_node or len(bundles) == 1 else f" for each of {len(bundles)} workers"
    for name, amount in wanted.items():
        largest = max((node.get(name, 0.0) for node in free), default=0.0)
        if largest < amount:
            return f"waits for {amount:g} {name} on one node{rest}; the largest free is {largest:g}"
    asked = " and ".join(f"{amount:g} {name}" for name, amount in wanted.items())
    return f"waits for {asked} on one node{rest}, with the labels that it asks for"


def rank_order(infos: Sequence[WorkerInfo]) -> list[int]:
    """Places in `infos` by node, in the order of the bundles, and by device there: neighbours in rank are near."""
    nodes = list(dict.fromkeys(info.node for info in infos))
    return sorted(range(len(infos)), key=lambda place: (nodes.index(infos[place].node), infos[place].devices))


async def release(group: PlacementGroup) -> None:
    """Give the group back. Ray kills what still runs in it."""
    with contextlib.suppress(ValueError):
        await asyncio.to_thread(remove_placement_group, group)


def stray_groups(prefix: str, keep: set[str]) -> list[PlacementGroup]:
    """Groups of this deployment's names that nobody keeps."""
    tables = placement_group_table().values()
    names = {table["name"] for table in tables if table["state"] != "REMOVED"}
    strays = sorted(name for name in names - keep if name.startswith(prefix))
    return [get_placement_group(name) for name in strays]
