"""How `trunkline stop` finds this user's deployments on this machine."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from controller.announcement import announced, running_addresses


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "announcements"
    monkeypatch.setattr("controller.announcement._directory", lambda: made)
    return made


def test_a_running_deployment_is_found_until_it_ends(directory: Path) -> None:
    with announced("10.0.0.1:6379"):
        assert running_addresses() == ["10.0.0.1:6379"]
    assert running_addresses() == [] and not directory.exists()


def test_only_its_user_can_read_it(directory: Path) -> None:
    with announced("10.0.0.1:6379"):
        (file,) = directory.iterdir()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_what_a_killed_deployment_has_left_is_removed(directory: Path) -> None:
    directory.mkdir()
    (directory / "1.address").write_text("10.0.0.1:6379")
    assert running_addresses() == [] and not list(directory.iterdir())
