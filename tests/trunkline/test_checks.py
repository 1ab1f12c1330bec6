"""The start-up check on the name `kernels`."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import InvalidRequest
from trunkline.checks import check_kernels


def test_our_own_kernels_pass() -> None:
    assert check_kernels() is None


def test_kernels_from_elsewhere_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="pip uninstall kernels"):
        check_kernels(tmp_path)


def test_a_namesake_beside_ours_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "kernels-0.15.2.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.15.2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "'kernels' (0.15.2) is installed beside" in (check_kernels() or "")
