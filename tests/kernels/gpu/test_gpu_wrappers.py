"""What a caller of any kernel in Triton relies on, held here because mypy does not ask it of jit functions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[3] / "kernels" / "gpu").rglob("*.py"))


def is_jit(function: ast.FunctionDef) -> bool:
    return any("jit" in ast.unparse(decorator) for decorator in function.decorator_list)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_all_but_jit_functions_are_typed(path: Path) -> None:
    functions = [
        node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)
    ]
    untyped = [
        function.name
        for function in functions
        if not is_jit(function)
        and (
            function.returns is None
            or any(
                argument.annotation is None and argument.arg not in ("self", "cls")
                for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
            )
        )
    ]
    assert not untyped
