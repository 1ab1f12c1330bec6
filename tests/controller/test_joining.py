"""Before a Ray is joined: is anybody there, and which token is shown."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from controller.joining import prepare_to_join
from protocol.errors import InvalidRequest


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_dead_address_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(InvalidRequest, match=f"there is no Ray at 127.0.0.1:{port}"):
        prepare_to_join(f"127.0.0.1:{port}")


def test_a_live_address_passes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        prepare_to_join(f"127.0.0.1:{somebody.getsockname()[1]}")


def test_the_users_token_is_shown_where_there_is_one(home: Path) -> None:
    prepare_to_join("auto")
    assert "RAY_AUTH_MODE" not in os.environ
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").touch()
    prepare_to_join("auto")
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_what_the_user_has_set_stands(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").touch()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    prepare_to_join("auto")
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
