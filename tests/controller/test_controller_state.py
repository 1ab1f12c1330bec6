"""What the controller keeps outside its process, and what its names say."""

from __future__ import annotations

import pytest

from controller.config_file import build_config
from controller.names import ActorName, parse_actor_name
from controller.state import DeploymentState
from controller.unit import UnitFacts, UnitRecord
from protocol.deployment_secrets import DeploymentSecrets
from protocol.membership import Event, ServedModel, WorkerInfo


def test_a_state_survives_its_storage() -> None:
    facts = UnitFacts("10.0.0.1", 4000, (WorkerInfo(0, 12, "n", (3,)), WorkerInfo(1, 13, "n")))
    served = ServedModel("m", "/models/m", "v1", 2)
    replica = UnitRecord("replica-0", 3, facts, "a1", draining=True, serves=served)
    units = (replica, UnitRecord("router-0", 1))
    config = build_config({"api_keys": ["k"], "worker": {"resources": {"fast": 1.0}}})
    state = DeploymentState(
        config,
        DeploymentSecrets.generate(),
        units,
        stop_grace_s=2.5,
        previous=build_config({"replicas": 7}),
        upgrade_error="no",
        events=(Event(12.5, "replica-0", "drains"),),
        retired={"replica-4": 2},
    )
    assert DeploymentState.from_json(state.to_json()) == state


def test_a_states_secrets_are_not_shown() -> None:
    state = DeploymentState(build_config({}), DeploymentSecrets.generate())
    assert "secrets=" not in repr(state) and "hello_key" not in repr(state)


@pytest.mark.parametrize("name", [ActorName("replica-3", 12, 1), ActorName("router-0", 2)])
def test_a_name_says_what_it_names(name: ActorName) -> None:
    assert parse_actor_name(str(name)) == name


@pytest.mark.parametrize("name", ["controller", "replica-1", "replica-x.1.rank-0", "somebody-else"])
def test_a_strangers_name_says_nothing(name: str) -> None:
    assert parse_actor_name(name) is None
