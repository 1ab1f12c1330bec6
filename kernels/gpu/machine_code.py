"""What NVIDIA's disassembler prints of a compiled kernel, as instructions and loops: what a device would execute.

For `benchmarks/kernels_bounds.py`, which asks what a kernel can reach, and for the test that holds its counts. Knows no
kernel and no device's speed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

_LABEL = re.compile(r"^(\.L_\w+):")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_BRANCH = re.compile(r"`\((\.L_\w+)\)")
_MATRIX = re.compile(r"^(?:HGMMA\.64x(\d+)x(\d+)|HMMA\.(1688|16816))")
_WIDTH = re.compile(r"\.(?:U)?(8|16|32|64|128)\b")

WARPS_OF_A_GROUP = 4  # that make a product of 64 rows together
_VECTOR_BYTES = 16  # the widest access of a thread


@dataclass(frozen=True, slots=True)
class Instruction:
    name: str  # with its modifiers: "HGMMA.64x128x16.F32.BF16"
    operands: tuple[str, ...]
    predicate: str | None  # "P0", "!UP1"; "!PT" never holds

    @property
    def kind(self) -> str:
        return self.name.partition(".")[0]

    @property
    def flops(self) -> int:
        """Of a warp's share of a product of matrices: a product and a sum are two."""
        found = _MATRIX.match(self.name)
        if found is None:
            return 0
        if found[3] is not None:
            return 2 * 16 * 8 * (16 if found[3] == "16816" else 8)
        return 2 * 64 * int(found[1]) * int(found[2]) // WARPS_OF_A_GROUP

    @property
    def thread_bytes(self) -> int:
        """That a thread of a load or store moves."""
        if self.kind == "LDSM" or self.kind == "STSM":
            return 4 * int(self.name.rpartition(".")[2]) if self.name[-1].isdigit() else 4
        found = _WIDTH.search(self.name)
        return int(found[1]) // 8 if found else 4

    @property
    def reads_memory(self) -> bool:
        return self.kind in ("LDG", "LDGSTS") and self.predicate != "!PT"


@dataclass(frozen=True)
class Code:
    """Instructions that a warp executes one after the other."""

    instructions: tuple[Instruction, ...]
    is_loop: bool  # a loop's body, else all there is

    def count(self, *kinds: str) -> int:
        return sum(each.kind in kinds for each in self.instructions)

    @cached_property
    def flops(self) -> int:
        """A warp's."""
        return sum(each.flops for each in self.instructions)

    @cached_property
    def matrix_instructions(self) -> int:
        return sum(each.flops > 0 for each in self.instructions)

    @cached_property
    def memory_bytes(self) -> int:
        """A thread's reads of global memory in vectors; a block's number is none."""
        return sum(
            each.thread_bytes for each in self.instructions if each.reads_memory and each.thread_bytes > 4
        )

    @cached_property
    def wide_loads(self) -> int:
        """Of global memory, by vectors of 16 bytes."""
        return sum(each.reads_memory and each.thread_bytes == _VECTOR_BYTES for each in self.instructions)

    @cached_property
    def copies_in_flight(self) -> int | None:
        """Groups of copies to shared memory that are still on their way when a body goes on; None: it waits for none.
        0: nothing is fetched while a tile is worked on."""
        waits = [
            each for each in self.instructions if each.name.startswith("DEPBAR") and "SB" in each.operands[0]
        ]
        return min((int(each.operands[1], 16) for each in waits), default=None)


def parse(disassembly: str) -> tuple[tuple[Instruction, ...], dict[str, int]]:
    """All instructions, and the place of each label among them."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in disassembly.splitlines():
        if label := _LABEL.match(line.strip()):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            operands = tuple(part.strip() for part in found[3].split(",")) if found[3] else ()
            instructions.append(Instruction(found[2], operands, found[1]))
    return tuple(instructions), labels


def loops(instructions: Sequence[Instruction], labels: dict[str, int]) -> list[Code]:
    """Bodies of backward branches that hold no other loop; a branch to itself, behind a kernel's end, makes none."""
    spans = []
    for place, each in enumerate(instructions):
        target = _BRANCH.search(",".join(each.operands)) if each.kind == "BRA" else None
        if target is not None and labels[target[1]] < place:
            spans.append((labels[target[1]], place + 1))
    innermost = [
        span
        for span in spans
        if not any(span != other and span[0] <= other[0] and other[1] <= span[1] for other in spans)
    ]
    return [Code(tuple(instructions[begin:end]), is_loop=True) for begin, end in innermost]


def hot_code(disassembly: str) -> Code:
    """The loop that does the work: of those with products the shortest, which masks nothing; else the one with the
    most loads; where there is no loop, everything up to the end."""
    instructions, labels = parse(disassembly)
    found = [loop for loop in loops(instructions, labels) if loop.flops or loop.wide_loads]
    if not found:
        last = max(place for place, each in enumerate(instructions) if each.kind == "EXIT")
        return Code(instructions[: last + 1], is_loop=False)
    with_products = [loop for loop in found if loop.flops]
    if with_products:
        return min(with_products, key=lambda loop: len(loop.instructions))
    return max(found, key=lambda loop: loop.memory_bytes)
