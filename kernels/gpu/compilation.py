"""Compiles a kernel for a GPU that need not be there, and reads what its machine code takes.

Every kernel file lists the configurations that its wrapper launches as `COMPILED`; the tests and
`benchmarks/kernels_compile.py` compile them all. Knows no kernel.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import kernels.gpu

# Every launch passes them too, so that it runs the code that was measured here. Contraction of products and sums into
# one rounding is pinned because triton 3.10 changes its default, and with it the numbers.
PINNED_OPTIONS: Mapping[str, Any] = {"enable_fp_fusion": True}

TARGETS: Mapping[str, GPUTarget] = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_LIMITS: Mapping[str, int] = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
# The matrix instruction by the rows of a product: below 64 only a warp's own, from 64 on a group of warps' where the
# target has one. For 16-bit and TF32 operands.
FEW_ROWS: Mapping[str, str] = {"sm_80": "HMMA", "sm_90": "HMMA", "sm_100": "HMMA", "gfx942": "MFMA"}
MANY_ROWS: Mapping[str, str] = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "MFMA"}

# Tensor cores of NVIDIA by the type of their operands, and the tensor memory accelerator's loads.
_NVIDIA_INSTRUCTION = re.compile(r"\b(HMMA|QMMA|IMMA|HGMMA|QGMMA|IGMMA|UTCHMMA|UTCQMMA|UTCIMMA|UTMALDG)\b")
_AMD_INSTRUCTION = re.compile(r"\bv_(mfma)_")
# Of PTX and of AMD's assembly: a thread reads or writes one number of 8 or 16 bits. Vectors are of 32 bits and more.
_NARROW = re.compile(r"\b(?:ld|st)\.global[.\w:]*\.b(?:8|16)\b|_(?:load|store)_(?:[us]?short|[us]?byte)")


@dataclass(frozen=True, slots=True)
class Compiled:
    """A configuration that is launched. Triton specialises a launch's arguments by itself, here they are spelled out:
    an integer that is 1 and a pointer that is None are constexprs, multiples of 16 are `aligned`, pointers always."""

    name: str  # unique among all kernels
    kernel: Any  # what @triton.jit returns
    types: Mapping[str, str]  # by parameter: "*bf16", "*fp8e4nv", "i32", "fp32", "tensordesc<bf16[64, 128]>"
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3
    aligned: tuple[str, ...] = ()
    # By target, all that must occur and nothing else: "HGMMA", or "HMMA + UTMALDG" with TMA. None: no product is made.
    instructions: Mapping[str, str] | None = None
    targets: tuple[str, ...] = tuple(TARGETS)  # one that lacks a type of `types` is not applicable


@dataclass(frozen=True, slots=True)
class Usage:
    registers: int  # per thread
    shared_bytes: int  # per program
    spill_bytes: int  # per thread: what does not fit the registers lies in memory
    instructions: str | None  # as in `Compiled`
    narrow_accesses: int  # in the code, to numbers that do not travel in vectors


def chosen_configurations() -> list[Compiled]:
    """Of all kernels, in the order of their files."""
    found = pkgutil.walk_packages(kernels.gpu.__path__, f"{kernels.gpu.__name__}.")
    modules = [importlib.import_module(name) for name in sorted(module.name for module in found)]
    return [compiled for module in modules for compiled in getattr(module, "COMPILED", ())]


def measure_all(
    chosen: Iterable[tuple[Compiled, str]], pool: Executor
) -> dict[tuple[str, str], Future[Usage]]:
    """Of chosen configurations for targets, by name and target. `pool`: of processes, since compiling holds the GIL."""
    return {(each.name, target): pool.submit(_measure_chosen, each.name, target) for each, target in chosen}


def _measure_chosen(name: str, target: str) -> Usage:
    return measure(_chosen_by_name()[name], target)


@cache
def _chosen_by_name() -> dict[str, Compiled]:
    return {each.name: each for each in chosen_configurations()}


def measure(compiled: Compiled, target: str) -> Usage:
    """Raises what triton raises where the kernel does not compile. Not in a process that interprets kernels."""
    code = _compile(compiled, target)
    return _read_cubin(code) if "cubin" in code.asm else _read_amd(code)


def disassemble(compiled: Compiled, target: str) -> str:
    """Machine code of an NVIDIA target as text, which `machine_code.py` reads."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(_compile(compiled, target).asm["cubin"])
        file.flush()
        return _run(triton.knobs.nvidia.nvdisasm.path, "-c", file.name)


def _compile(compiled: Compiled, target: str) -> Any:
    parameters: list[str] = compiled.kernel.arg_names
    constexprs = compiled.constexprs
    unknown = (constexprs.keys() | compiled.types.keys()).symmetric_difference(parameters)
    assert not unknown, f"{compiled.name}: not parameters, or without a type: {sorted(unknown)}"
    signature = {name: "constexpr" if name in constexprs else compiled.types[name] for name in parameters}
    aligned = [name for name in parameters if signature[name].startswith("*") or name in compiled.aligned]
    source = ASTSource(
        fn=compiled.kernel,
        signature=signature,
        constexprs={(parameters.index(name),): value for name, value in constexprs.items()},
        attrs={(parameters.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": compiled.num_warps, "num_stages": compiled.num_stages, **PINNED_OPTIONS}
    return triton.compile(source, target=TARGETS[target], options=options)


def _read_cubin(code: Any) -> Usage:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code.asm["cubin"])
        file.flush()
        resources = _run(triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        # Half a second, so only where the code from which it was assembled multiplies matrices or loads whole tiles.
        assembly = ""
        if re.search(r"mma|cp\.async\.bulk\.tensor", code.asm["ptx"]):
            assembly = _run(triton.knobs.nvidia.nvdisasm.path, "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", resources)
    assert found, f"cuobjdump says nothing of registers: {resources}"
    return Usage(
        registers=int(found[1]),
        shared_bytes=code.metadata.shared,
        spill_bytes=int(found[2]),  # spilled registers lie on the stack, which nothing else of ours uses
        instructions=_joined(_NVIDIA_INSTRUCTION.findall(assembly)),
        narrow_accesses=len(_NARROW.findall(code.asm["ptx"])),
    )


def _read_amd(code: Any) -> Usage:
    assembly: str = code.asm["amdgcn"]

    def of_metadata(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        assert found, f"the assembly's metadata has no {name}"
        return int(found[1])

    return Usage(
        registers=of_metadata("vgpr_count"),
        shared_bytes=code.metadata.shared,
        # Scalar registers that spill go to lanes of vector registers, not to memory.
        spill_bytes=max(of_metadata("private_segment_fixed_size"), 4 * of_metadata("vgpr_spill_count")),
        instructions=_joined(_AMD_INSTRUCTION.findall(assembly)),
        narrow_accesses=len(_NARROW.findall(assembly)),
    )


def _joined(found: list[str]) -> str | None:
    return " + ".join(sorted({name.upper() for name in found})) or None


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr  # cuobjdump has changed which of the two it writes to
