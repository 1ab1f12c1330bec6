"""The error tree: every code is somebody's own, and survives being named by a peer."""

from __future__ import annotations

import pytest

from protocol import errors


def all_errors() -> list[type[errors.TrunklineError]]:
    return [error for error in errors._tree(errors.TrunklineError) if error.__module__ == errors.__name__]


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.__name__)
def test_a_code_names_its_error(error: type[errors.TrunklineError]) -> None:
    assert type(errors.error_from_code(error.code, "why")) is error


def test_an_unknown_code_is_an_internal_error() -> None:
    assert type(errors.error_from_code("no such", "why")) is errors.TrunklineError


def test_clients_faults_are_not_reported_as_ours() -> None:
    assert all(
        400 <= error.status < 500 for error in all_errors() if issubclass(error, errors.InvalidRequest)
    )
