"""The house rules that a reader relies on: which package may import which, and that ours are the ones imported."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

import kernels
import protocol
import trunkline

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT: dict[str, set[str]] = {
    "protocol": set(),
    "kernels": set(),
    "router": {"protocol"},
    "workers": {"protocol", "kernels"},
    "controller": {"router", "workers", "protocol"},
    "simulator": {"router", "workers", "protocol"},
    "trunkline": {"controller", "router", "workers", "kernels", "protocol", "simulator"},
}
RAY_AT_HOME = {"workers/actor.py", "router/actor.py"}
TORCH_FREE = (
    "workers/scheduling",
    "workers/kv",
    "workers/engine.py",
    "workers/step_plan.py",
    "workers/preflight.py",
)


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module


def top_imports(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package: str) -> None:
    forbidden = set(MAY_IMPORT) - MAY_IMPORT[package] - {package}
    offenders = {str(path): top_imports(path) & forbidden for path in sources(package)}
    assert not {path: names for path, names in offenders.items() if names}


@pytest.mark.parametrize("package", ["protocol", "kernels", "router", "workers", "simulator"])
def test_ray_stands_in_one_file_per_package(package: str) -> None:
    with_ray = {str(path.relative_to(ROOT)) for path in sources(package) if "ray" in top_imports(path)}
    assert with_ray <= RAY_AT_HOME


@pytest.mark.parametrize("package", ["protocol", "router", "simulator"])
def test_the_router_knows_no_torch(package: str) -> None:
    assert not [path for path in sources(package) if "torch" in top_imports(path)]


def test_the_core_of_the_engine_knows_no_torch() -> None:
    core = [
        path for path in sources("workers") if any(path.is_relative_to(ROOT / part) for part in TORCH_FREE)
    ]
    assert len(core) > len(TORCH_FREE)
    assert not [path for path in core if "torch" in top_imports(path)]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_each_package_resolves_inside_the_checkout(package: str) -> None:
    found = importlib.util.find_spec(package)
    assert found is not None and found.origin is not None
    assert Path(found.origin).is_relative_to(ROOT)


def test_there_is_one_version() -> None:
    assert kernels.__version__ == protocol.__version__ == trunkline.__version__


def test_no_test_folder_is_a_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_every_module_says_what_lives_there(package: str) -> None:
    bare = [path for path in sources(package) if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]
    assert not bare
