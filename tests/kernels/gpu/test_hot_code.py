"""What the loops of the kernels that matter most do on sm_90: counted in the machine code, so that nothing has to run.

Compared with `benchmarks/results/kernels-bounds.json`; `python benchmarks/kernels_bounds.py` renews it and says what
the counts mean for speed.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import triton

from kernels.gpu.compilation import Compiled, chosen_configurations, disassemble
from kernels.gpu.machine_code import Code, hot_code

pytestmark = pytest.mark.skipif(triton.knobs.runtime.interpret, reason="interpreted kernels are not compiled")

TABLES = json.loads((Path(__file__).parents[3] / "benchmarks/results/kernels-bounds.json").read_text("utf-8"))
TABLED = (TABLES.get(triton.__version__) or TABLES[max(TABLES)])["kernels"]
CONFIGURATIONS = {each.name: each for each in chosen_configurations()}
DECODE = next(each for name, each in CONFIGURATIONS.items() if name.startswith("attention decode, bf16"))


@cache
def code_of(name: str) -> Code:
    return hot_code(disassemble(CONFIGURATIONS[name], "sm_90"))


def loop_of(compiled: Compiled) -> Code:
    return hot_code(disassemble(compiled, "sm_90"))


@pytest.mark.parametrize("name", TABLED)
def test_a_tile_takes_hardly_more_instructions_than_in_the_table(name: str) -> None:
    assert len(code_of(name).instructions) <= 1.15 * TABLED[name]["instructions"]


@pytest.mark.parametrize("name", TABLED)
def test_a_tile_is_multiplied_and_loaded_by_as_wide_instructions_as_in_the_table(name: str) -> None:
    code = code_of(name)
    widths = {"matrix_instructions": code.matrix_instructions, "wide_loads": code.wide_loads}
    assert widths == {count: TABLED[name][count] for count in widths}


@pytest.mark.parametrize("name", [name for name in TABLED if TABLED[name]["copies_in_flight"]])
def test_the_next_tiles_are_on_their_way_while_one_is_worked_on(name: str) -> None:
    """As many as in the table: a loop that waits for what it has just asked for runs at a fraction of the speed."""
    assert (code_of(name).copies_in_flight or 0) >= TABLED[name]["copies_in_flight"]


def test_every_loop_of_the_table_has_copies_on_their_way() -> None:
    """Where none is listed, nothing is copied: there is no loop."""
    assert not [name for name, counts in TABLED.items() if counts["copies_in_flight"] == 0]


def test_a_loop_that_waits_for_its_copies_is_seen() -> None:
    """Of three stages, a block's number takes two."""
    assert loop_of(replace(DECODE, num_stages=3)).copies_in_flight == 0


def test_loads_that_lost_their_width_are_seen() -> None:
    assert not loop_of(replace(DECODE, aligned=())).wide_loads


LOOPS = """
.L_x_0:
        /*0010*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, gsb0 ;
        /*0020*/                   FSEL R1, R2, RZ, P0 ;
        /*0028*/                   FSEL R2, R3, RZ, P0 ;
        /*0030*/               @P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0040*/                   DEPBAR.LE SB0, 0x2 ;
        /*0050*/                   HMMA.16816.F32.BF16 R52, R44.reuse, R48, RZ ;
        /*0060*/              @!P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0070*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0080*/                   EXIT ;
.L_x_3:
        /*0090*/                   BRA `(.L_x_3) ;
"""


def test_of_several_loops_the_one_with_the_least_to_do_for_its_products_is_hot() -> None:
    code = hot_code(LOOPS)
    assert [each.kind for each in code.instructions] == ["DEPBAR", "HMMA", "BRA"]
    assert (code.flops, code.copies_in_flight) == (2 * 16 * 8 * 16, 2)


def test_without_a_loop_all_code_is_hot_up_to_its_end() -> None:
    code = hot_code(LOOPS[LOOPS.index(".L_x_2") :])
    assert [each.kind for each in code.instructions] == ["LDG", "EXIT"]
    assert (code.memory_bytes, code.wide_loads, code.is_loop) == (16, 1, False)
