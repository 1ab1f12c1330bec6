"""Every chosen kernel configuration, compiled for every GPU that it is for: on any machine, as long as nothing spills.

Compared with `benchmarks/results/kernels-compile.json`; `python benchmarks/kernels_compile.py` renews it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import triton
import triton.language as tl

from kernels.gpu import add_rms_norm
from kernels.gpu.compilation import (
    MANY_ROWS,
    SHARED_LIMITS,
    TARGETS,
    Compiled,
    Usage,
    chosen_configurations,
    measure,
    measure_all,
)

pytestmark = pytest.mark.skipif(triton.knobs.runtime.interpret, reason="interpreted kernels are not compiled")

TABLES = json.loads(
    (Path(__file__).parents[3] / "benchmarks/results/kernels-compile.json").read_text("utf-8")
)
TABLE = TABLES.get(triton.__version__) or TABLES[max(TABLES)]
TABLED = {(row["kernel"], row["target"]): row for row in TABLE["kernels"]}
CONFIGURATIONS = chosen_configurations()


@dataclass(frozen=True)
class Measured:
    compiled: Compiled
    target: str
    usage: Usage


@pytest.fixture(scope="module")
def usages(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], Future[Usage]]]:
    """Of all that will be asked for, compiled on all cores: by far the longest work of these tests."""
    given = (getattr(item, "callspec", None) for item in request.session.items)
    chosen = [each.params["measured"] for each in given if each is not None and "measured" in each.params]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        by_name = {(compiled.name, target): (compiled, target) for compiled, target in chosen}
        yield measure_all(by_name.values(), pool)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((compiled, target), id=f"{compiled.name} {target}")
        for compiled in CONFIGURATIONS
        for target in compiled.targets
    ],
)
def measured(request: pytest.FixtureRequest, usages: dict[tuple[str, str], Future[Usage]]) -> Measured:
    compiled, target = request.param
    return Measured(compiled, target, usages[compiled.name, target].result())


def test_nothing_spills(measured: Measured) -> None:
    assert measured.usage.spill_bytes == 0


def test_products_are_made_by_the_instruction_that_was_chosen(measured: Measured) -> None:
    assert measured.usage.instructions == (measured.compiled.instructions or {}).get(measured.target)


def test_shared_memory_suffices(measured: Measured) -> None:
    assert measured.usage.shared_bytes <= SHARED_LIMITS[measured.target]


def test_registers_are_those_of_the_table_or_hardly_more(measured: Measured) -> None:
    """Another compiler may take a few more; a quarter more would leave room for fewer programs."""
    tabled = TABLED[measured.compiled.name, measured.target]["registers"]
    assert measured.usage.registers <= max(tabled + 16, tabled * 1.25)


def test_no_more_numbers_travel_one_by_one_than_in_the_table(measured: Measured) -> None:
    """A kernel that loses its vectors still computes what it should, at a fraction of the memory's speed."""
    tabled = TABLED[measured.compiled.name, measured.target]["narrow_accesses"]
    assert measured.usage.narrow_accesses <= tabled


def test_every_configuration_has_a_name_of_its_own() -> None:
    assert not [name for name, count in Counter(each.name for each in CONFIGURATIONS).items() if count > 1]


@pytest.mark.parametrize("version", TABLES)
def test_the_table_is_of_the_chosen_configurations(version: str) -> None:
    tabled = {(row["kernel"], row["target"]) for row in TABLES[version]["kernels"]}
    assert tabled == {(compiled.name, target) for compiled in CONFIGURATIONS for target in compiled.targets}


@pytest.mark.parametrize("version", TABLES)
def test_nothing_spilled_with_any_compiler_of_the_table(version: str) -> None:
    assert not [row for row in TABLES[version]["kernels"] if row["spill_bytes"]]


@triton.jit
def _product_kernel(
    a_ptr,  # [ROWS, 64]
    b_ptr,  # [64, 64]
    out_ptr,  # [ROWS, 64], written
    ROWS: tl.constexpr,
):
    offs_row, offs = tl.arange(0, ROWS)[:, None], tl.arange(0, 64)
    a = tl.load(a_ptr + offs_row * 64 + offs[None, :])  # (ROWS, 64)
    b = tl.load(b_ptr + offs[:, None] * 64 + offs[None, :])  # (64, 64)
    tl.store(out_ptr + offs_row * 64 + offs[None, :], tl.dot(a, b))


def product(rows: int, num_warps: int) -> Compiled:
    types = {"a_ptr": "*bf16", "b_ptr": "*bf16", "out_ptr": "*fp32"}
    return Compiled("product", _product_kernel, types, {"ROWS": rows}, num_warps)


@pytest.mark.parametrize(
    ("target", "rows"), (("sm_80", 128), ("sm_90", 128), ("sm_100", 128), ("gfx942", 1024))
)
def test_a_spill_is_seen(target: str, rows: int) -> None:
    assert measure(product(rows, num_warps=1), target).spill_bytes > 0


@pytest.mark.parametrize("target", TARGETS)
def test_the_matrix_instruction_is_seen(target: str) -> None:
    assert measure(product(rows=64, num_warps=4), target).instructions == MANY_ROWS[target]


@pytest.mark.parametrize("target", TARGETS)
def test_numbers_that_travel_one_by_one_are_seen(target: str) -> None:
    rows_anywhere = replace(add_rms_norm.COMPILED[0], aligned=())
    assert measure(rows_anywhere, target).narrow_accesses > 0


def test_a_parameter_that_was_forgotten_or_misspelt_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"not parameters, or without a type: \['b_ptr', 'c_ptr'\]"):
        measure(
            replace(product(16, 4), types={"a_ptr": "*bf16", "c_ptr": "*bf16", "out_ptr": "*fp32"}), "sm_90"
        )
