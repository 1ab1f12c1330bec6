"""What the controller shows of itself, made from its state and its units: the membership. Pure.

Called by `controller.py` after every round; `status.py` makes of it what watchers see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from controller.state import DeploymentState
from controller.unit import Unit
from controller.wanted import served_model
from protocol.membership import DeploymentView, Membership, ServedModel


def membership_of(state: DeploymentState, units: Sequence[Unit]) -> Membership:
    """Its version is whoever publishes it."""
    view = DeploymentView(
        routers=tuple(unit.info() for unit in units if unit.is_router),
        upgrading=state.previous is not None,
        upgrade_error=state.upgrade_error,
        events=state.events,
    )
    replicas = tuple(unit.info() for unit in units if not unit.is_router)
    return Membership(0, replicas, _models(state, units), view)


def hopeless_detail(units: Sequence[Unit]) -> str:
    """Of a unit that cannot start until the wanted state changes; empty: there is none."""
    return next((unit.detail for unit in units if unit.hopeless), "")


def _models(state: DeploymentState, units: Sequence[Unit]) -> tuple[ServedModel, ...]:
    """Those that are wanted, and behind them those that some replica still serves."""
    stopping = state.stop_grace_s is not None
    wanted = [served_model(model) for model in state.config.models]
    if stopping:
        wanted = [replace(model, num_wanted=0) for model in wanted]
    versions = {model.version: model for model in wanted}
    for unit in units:
        if unit.serves is not None:
            versions.setdefault(unit.serves.version, replace(unit.serves, num_wanted=0, current=False))
    return tuple(versions.values())
