"""What every test gets: one OpenMP thread, no reach to a model hub, Ray without its token."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"

_SETTINGS = {
    "pytest_asyncio": ("asyncio_mode", "asyncio_default_fixture_loop_scope"),
    "pytest_timeout": ("timeout",),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """A machine with GPUs may lack plugins that the tests there do without: their settings are no mistakes."""
    for plugin, names in _SETTINGS.items():
        for name in names if find_spec(plugin) is None else ():
            parser.addini(name, f"of {plugin}, which is not installed")
