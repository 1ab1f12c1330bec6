"""Which replicas there should be: scaling, draining and upgrading as tables and as walks of a small world."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.reconcile import Action, Verb, reconcile
from controller.rollout import Observed, Wanted, WantedModel, units_to_have


def replica(
    index: int,
    revision: str = "old",
    *,
    model: str = "m",
    ready: bool = True,
    draining: bool = False,
    cached: int = 0,
) -> Observed:
    return Observed(
        f"replica-{index}",
        alive=True,
        model=model,
        ready=ready,
        draining=draining,
        revision=revision,
        num_own_blocks=cached,
    )


def router(index: int, revision: str = "", *, ready: bool = True, draining: bool = False) -> Observed:
    return Observed(f"router-{index}", True, "", ready, draining, revision)


def wanting(num_replicas: int, revision: str = "old", surge: int = 1) -> Wanted:
    return Wanted((WantedModel("m", num_replicas, revision),), surge=surge)


def names(wanted: Wanted, observed: list[Observed]) -> list[str]:
    return list(units_to_have(wanted, observed))


class World:
    """Obeys every plan: what is started becomes ready a turn later, what is drained is gone a turn later."""

    def __init__(self, wanted: Wanted, units: list[Observed]) -> None:
        self.wanted = wanted
        self.units = {unit.unit: unit for unit in units}
        self.most_alive = self.fewest_ready = len(units)

    def run(self) -> int:
        """Turns until nothing is left to be done."""
        for turn in range(100):
            plan = reconcile(self.wanted, list(self.units.values()), 0.0, False)
            if not plan.actions and all(unit.ready for unit in self.units.values()):
                return turn
            self._pass_time()
            for action in plan.actions:
                self._obey(action)
            self.most_alive = max(self.most_alive, sum(unit.alive for unit in self.units.values()))
            self.fewest_ready = min(self.fewest_ready, self.num_ready)
        raise AssertionError("it never comes to rest")

    @property
    def num_ready(self) -> int:
        return sum(unit.ready for unit in self.units.values())

    def _pass_time(self) -> None:
        for name, unit in self.units.items():
            if unit.draining:
                self.units[name] = replace(unit, alive=False)
            elif unit.alive:
                self.units[name] = replace(unit, ready=True)

    def _obey(self, action: Action) -> None:
        name = action.unit
        if action.verb is Verb.START:
            model = self.wanted.find(action.model)
            revision = self.wanted.router_revision if model is None else model.revision
            self.units[name] = Observed(name, True, action.model, revision=revision)
        elif action.verb is Verb.DRAIN:
            self.units[name] = replace(self.units[name], ready=False, draining=True)
        else:
            del self.units[name]


def test_growing_starts_the_lowest_free_names() -> None:
    assert names(wanting(3, "old"), [replica(1)]) == ["replica-1", "replica-0", "replica-2"]


def test_the_victim_is_not_ready_or_else_has_cached_least() -> None:
    fleet = [replica(0, cached=10), replica(1, cached=5), replica(2, cached=90)]
    assert names(wanting(2, "old"), fleet) == ["replica-2", "replica-0"]
    fleet[2] = replica(2, ready=False, cached=90)
    assert names(wanting(2, "old"), fleet) == ["replica-0", "replica-1"]


def test_a_drained_replica_is_replaced_under_another_name() -> None:
    fleet = [replica(0), replica(1, draining=True, ready=False)]
    assert names(wanting(2, "old"), fleet) == ["replica-0", "replica-2"]


def test_many_drained_at_once_are_replaced_within_the_surge() -> None:
    fleet = [replica(index, draining=True, ready=False) for index in range(3)]
    assert names(wanting(3, "old"), fleet) == ["replica-3"]


@pytest.mark.parametrize("num_replicas", [1, 2, 5])
def test_an_upgrade_surges_one_and_drains_one_until_all_are_new(num_replicas: int) -> None:
    world = World(wanting(num_replicas, "new"), [replica(index) for index in range(num_replicas)])
    world.run()
    assert {unit.revision for unit in world.units.values()} == {"new"}
    assert (world.most_alive, world.fewest_ready) == (num_replicas + 1, num_replicas)


def test_without_a_surge_one_makes_room_for_the_next() -> None:
    world = World(wanting(3, "new", surge=0), [replica(index) for index in range(3)])
    world.run()
    assert {unit.revision for unit in world.units.values()} == {"new"} and world.num_ready == 3
    assert (world.most_alive, world.fewest_ready) == (3, 2)


def test_a_larger_surge_is_used() -> None:
    world = World(wanting(4, "new", surge=4), [replica(index) for index in range(4)])
    assert world.run() < World(wanting(4, "new"), [replica(index) for index in range(4)]).run()
    assert world.most_alive == 8 and world.fewest_ready == 4


def test_nothing_ready_is_drained_for_a_new_replica_that_does_not_come_up() -> None:
    fleet = [replica(0), replica(1), replica(2, "new", ready=False)]
    assert names(wanting(2, "new"), fleet) == ["replica-2", "replica-0", "replica-1"]


def test_an_old_replica_that_is_not_ready_goes_at_once() -> None:
    fleet = [replica(0), replica(1, ready=False)]
    assert "replica-1" not in names(wanting(2, "new"), fleet)


def test_growing_and_shrinking_during_an_upgrade_come_to_rest() -> None:
    for wanted in (1, 4):
        world = World(wanting(wanted, "new"), [replica(0), replica(1), replica(2, "new")])
        world.run()
        assert [unit.revision for unit in world.units.values()] == ["new"] * wanted


def test_routers_are_replaced_in_their_places_one_after_the_other() -> None:
    places = ("router-0", "router-1", "router-2")
    world = World(Wanted((), places, router_revision="new"), [router(index, "old") for index in range(3)])
    world.run()
    assert {unit.revision for unit in world.units.values()} == {"new"} and tuple(
        sorted(world.units)
    ) == places
    assert world.fewest_ready == 2


def test_no_second_router_goes_while_one_is_away() -> None:
    places = ("router-0", "router-1")
    away = [router(0, "old"), router(1, "old", ready=False, draining=True)]
    assert names(Wanted((), places, router_revision="new"), away) == ["router-0"]


def test_the_only_router_is_replaced_too() -> None:
    world = World(Wanted((), ("router-0",), router_revision="new"), [router(0, "old")])
    world.run()
    assert world.units["router-0"].revision == "new"


def test_models_have_replicas_of_their_own_under_names_of_the_deployment() -> None:
    wanted = Wanted((WantedModel("a", 2, "old"), WantedModel("b", 1, "old")))
    fleet = [replica(0, model="b"), replica(2, model="a")]
    assert units_to_have(wanted, fleet) == {"replica-2": "a", "replica-1": "a", "replica-0": "b"}


def test_one_models_upgrade_leaves_another_model_alone() -> None:
    wanted = Wanted((WantedModel("a", 2, "new"), WantedModel("b", 2, "old")))
    world = World(wanted, [replica(index, model="aabb"[index]) for index in range(4)])
    world.run()
    assert {"replica-2", "replica-3"} < set(world.units)
    assert (world.most_alive, world.fewest_ready) == (5, 4)


def test_a_model_that_is_no_longer_wanted_stays_until_the_others_are_ready() -> None:
    wanted = Wanted((WantedModel("new", 2, "r"),))
    waiting = [
        replica(0, model="gone"),
        replica(1, "r", model="new"),
        replica(2, "r", model="new", ready=False),
    ]
    assert "replica-0" in units_to_have(wanted, waiting)
    waiting[2] = replica(2, "r", model="new")
    assert "replica-0" not in units_to_have(wanted, waiting)


def test_without_a_surge_a_model_that_is_no_longer_wanted_makes_room_at_once() -> None:
    wanted = Wanted((WantedModel("new", 1, "r"),), surge=0)
    assert units_to_have(wanted, [replica(0, model="gone")]) == {"replica-1": "new"}
