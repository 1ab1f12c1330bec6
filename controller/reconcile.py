"""Wanted against actual: which units to start, to drain or to forget, and when to look again. Pure.

A unit is a replica or a router; `rollout.py` says which of them there should be. The rules, in order:
    1. while stopping nothing is wanted: routers are drained first, replicas once no router is alive;
    2. a unit that is wanted and not alive is started, unless its last failure cannot be cured by trying again,
       or its pause after failing is not over;
    3. a unit that is alive and no longer wanted is drained;
    4. a unit that is neither is forgotten.
Called by `controller.py` after every change, with all it knows; it remembers nothing itself.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from controller.rollout import Observed, Wanted, units_to_have

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
STEADY_S = 60.0  # a unit that was ready for so long has not crashed in a row


class Verb(enum.Enum):
    START = "start"
    DRAIN = "drain"
    FORGET = "forget"


@dataclass(frozen=True, slots=True)
class Action:
    verb: Verb
    unit: str
    model: str = ""  # that a unit to be started serves; empty: it is a router


@dataclass(frozen=True, slots=True)
class Plan:
    actions: tuple[Action, ...]
    look_again_at_s: float | None  # None: only a change calls for another look


def pause_s(failures: int) -> float:
    """Before the next start: none after the first failure in a row, then 1, 2, 4 … 60 seconds."""
    return 0.0 if failures <= 1 else min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 2, 16))


def failures_in_a_row(before: int, ready_for_s: float | None) -> int:
    """The count after one more failure; None: it never became ready."""
    return 1 if ready_for_s is not None and ready_for_s >= STEADY_S else before + 1


def reconcile(wanted: Wanted, observed: Sequence[Observed], now_s: float, stopping: bool) -> Plan:
    actual = {each.unit: each for each in observed}
    keep = {} if stopping else units_to_have(wanted, observed)
    pausing = {unit for unit in keep if unit in actual and _pauses(actual[unit], now_s)}
    starts = [unit for unit in keep if unit not in pausing and _may_start(actual.get(unit))]
    unwanted = [each for each in observed if each.unit not in keep]
    drains = [
        each.unit
        for each in unwanted
        if each.alive and not each.draining and (not stopping or _may_drain(each, unwanted))
    ]
    actions = (
        *(Action(Verb.START, unit, keep[unit]) for unit in starts),
        *(Action(Verb.DRAIN, unit) for unit in drains),
        *(Action(Verb.FORGET, each.unit) for each in unwanted if not each.alive),
    )
    return Plan(actions, min((_restart_at_s(actual[unit]) for unit in pausing), default=None))


def _restart_at_s(unit: Observed) -> float:
    return unit.failed_at_s + pause_s(unit.failures)


def _may_start(unit: Observed | None) -> bool:
    return unit is None or not (unit.alive or unit.hopeless)


def _pauses(unit: Observed, now_s: float) -> bool:
    """It has failed, and its next start is still to come."""
    resting = not unit.alive and not unit.hopeless and unit.failures > 0
    return resting and now_s < _restart_at_s(unit)


def _may_drain(unit: Observed, unwanted: Sequence[Observed]) -> bool:
    """At a stop a replica goes only when no router is alive any more: its requests still run there."""
    return unit.is_router or not any(each.is_router and each.alive for each in unwanted)
