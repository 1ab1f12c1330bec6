"""Ranks talk over the interface that has the node's address."""

from __future__ import annotations

import os

import pytest

from workers.network import VARIABLES, interface_of, talk_over


def test_loopback_is_found_by_its_address() -> None:
    assert interface_of("127.0.0.1") == "lo"


@pytest.mark.parametrize("address", ["203.0.113.7", "::1", "a-name"])
def test_an_address_that_no_interface_has_names_none(address: str) -> None:
    assert interface_of(address) is None


def test_what_the_environment_says_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")  # so that it is put back, whatever it was
        monkeypatch.delenv(variable)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    talk_over("127.0.0.1")
    assert [os.environ[variable] for variable in VARIABLES] == ["ib0", "lo"]
