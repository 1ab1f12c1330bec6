"""What a replica that finds no place is said to wait for."""

from __future__ import annotations

from controller.placement import lacking, rank_order
from protocol.membership import WorkerInfo

BUNDLE = {"CPU": 4.0, "GPU": 1.0}


def test_a_replica_on_one_node_names_the_scarce_resource_and_the_largest_free() -> None:
    free = [{"CPU": 64.0, "GPU": 2.0}, {"CPU": 64.0, "GPU": 1.0}]
    assert lacking([BUNDLE] * 4, True, free) == "waits for 4 GPU on one node; the largest free is 2"


def test_a_spread_replica_needs_room_for_one_worker_a_node() -> None:
    sentence = "waits for 1 GPU on one node for each of 4 workers; the largest free is 0"
    assert lacking([BUNDLE] * 4, False, [{"CPU": 64.0}]) == sentence


def test_without_nodes_nothing_is_free() -> None:
    assert lacking([BUNDLE], True, []) == "waits for 4 CPU on one node; the largest free is 0"


def test_enough_of_everything_somewhere_is_not_enough_together() -> None:
    free = [{"CPU": 64.0}, {"GPU": 8.0}]
    assert lacking([BUNDLE], True, free).startswith("waits for 4 CPU and 1 GPU on one node")


def test_ranks_go_by_node_and_by_device_there() -> None:
    places = [("b", 1), ("a", 3), ("b", 0), ("a", 2), ("a", 10)]
    infos = [WorkerInfo(rank, 1, node, (device,)) for rank, (node, device) in enumerate(places)]
    assert [places[place] for place in rank_order(infos)] == [
        ("b", 0),
        ("b", 1),
        ("a", 2),
        ("a", 3),
        ("a", 10),
    ]


def test_workers_without_devices_keep_their_order() -> None:
    assert rank_order([WorkerInfo(rank, 1, "n") for rank in range(12)]) == list(range(12))
