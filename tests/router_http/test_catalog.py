"""Which version of a model a request gets: by the replicas that accept, and always the same for a session."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from protocol.errors import ModelNotFound, NoReplica
from protocol.membership import ServedModel
from router.http.catalog import Catalog

Add = Callable[..., Any]


@pytest.fixture
def catalog() -> Catalog:
    return Catalog(rng=random.Random(0))


@pytest.fixture
def add(catalog: Catalog, router: Any, tokenizer: Any) -> Add:
    """`add("m-1", accepting=3)`: a version of `m`, whose core is returned."""

    def made(version: str, *, accepting: int = 1, **more: Any) -> Any:
        core = type(router)()
        core.num_accepting = accepting
        catalog.add(ServedModel(version.partition("-")[0], version, version, **more), core, tokenizer)
        return core

    return made


def shares(catalog: Catalog, *sessions: str | None) -> Counter[str]:
    return Counter(catalog.pick("m", b"tenant", session).served.version for session in sessions)


def test_two_versions_share_requests_as_they_have_accepting_replicas(catalog: Catalog, add: Add) -> None:
    add("m-1", accepting=3, current=False)
    add("m-2", accepting=1)
    found = shares(catalog, *[None] * 4000)
    assert 2850 < found["m-1"] < 3150 and found.total() == 4000


def test_sessions_share_them_likewise(catalog: Catalog, add: Add) -> None:
    add("m-1", accepting=3, current=False)
    add("m-2", accepting=1)
    assert 2850 < shares(catalog, *map(str, range(4000)))["m-1"] < 3150


def test_where_nobody_accepts_requests_wait_for_the_current_version(catalog: Catalog, add: Add) -> None:
    add("m-2", accepting=0)
    add("m-1", accepting=0, current=False)
    assert shares(catalog, *[None] * 20, *map(str, range(20))) == {"m-2": 40}


def test_a_version_without_accepting_replicas_gets_nothing(catalog: Catalog, add: Add) -> None:
    add("m-1", accepting=2, current=False)
    add("m-2", accepting=0)
    assert shares(catalog, *[None] * 20, *map(str, range(20))) == {"m-1": 40}


def test_a_session_changes_versions_once_while_the_replicas_do(catalog: Catalog, add: Add) -> None:
    old, new = add("m-1", accepting=4, current=False), add("m-2", accepting=0)
    seen: dict[str, list[str]] = {str(session): [] for session in range(50)}
    for moved in range(5):
        old.num_accepting, new.num_accepting = 4 - moved, moved
        for session, versions in seen.items():
            versions += [catalog.pick("m", b"tenant", session).served.version for _ in range(3)]
    assert all(versions == sorted(versions) for versions in seen.values())
    assert len({tuple(versions) for versions in seen.values()}) == 4


def test_the_same_session_of_another_tenant_is_another_session(catalog: Catalog, add: Add) -> None:
    add("m-1", current=False)
    add("m-2")
    versions = {catalog.pick("m", bytes([tenant]), "default").served.version for tenant in range(20)}
    assert versions == {"m-1", "m-2"}


def test_the_name_stands_for_its_current_version(catalog: Catalog, add: Add) -> None:
    add("m-2")
    add("m-1", current=False)
    assert catalog.current("m").served.version == "m-2"
    catalog.update(ServedModel("m", "m-2", "m-2", current=False))
    catalog.update(ServedModel("m", "m-1", "m-1"))
    assert catalog.current("m").served.version == "m-1"


def test_what_was_removed_is_not_found_any_more(catalog: Catalog, add: Add) -> None:
    add("m-1", current=False)
    add("m-2")
    catalog.remove("m-1")
    assert shares(catalog, *[None] * 20) == {"m-2": 20}
    catalog.remove("m-2")
    with pytest.raises(NoReplica, match="no model is served here"):
        catalog.pick("m")


def test_a_name_that_is_being_loaded_is_told_apart_from_an_unknown_one(catalog: Catalog, add: Add) -> None:
    add("m-1")
    catalog.miss({"late": "it is being loaded"})
    with pytest.raises(NoReplica, match="'late' is not here: it is being loaded"):
        catalog.pick("late")
    with pytest.raises(ModelNotFound, match="ask for 'm' or 'late'"):
        catalog.pick("other")
    assert catalog.status().missing == (("late", "it is being loaded"),)
