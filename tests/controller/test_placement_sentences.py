"""What a replica that finds no place is said to wait for."""

from __future__ import annotations

from controller.placement import lacking

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
