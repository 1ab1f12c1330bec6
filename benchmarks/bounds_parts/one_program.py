"""How long a loop's body takes a program that has a processor for itself: an in-order walk over its instructions.

Every instruction waits for its operands and for its pipe; a product of a group of warps and a copy to shared memory
run on by themselves until something waits for them. All warps are in step: what one could do while another waits is
left out. An estimate, no bound: what stalls it further, such as conflicts and other programs, is left out as well.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field

from bounds_parts import hopper

from kernels.gpu.machine_code import Code, Instruction

_REGISTER = re.compile(r"\b(U?R|U?P)(\d+)(\.64)?\b")
_WRITES_NOTHING = ("STS", "STSM", "STG", "LDGSTS", "BAR", "BRA", "HGMMA", "DEPBAR", "LDGDEPBAR", "WARPGROUP")
_ROUNDS = 6
_OPERAND_REGISTERS = {"HMMA": (4, 4, 2, 4)}


@dataclass
class _Walk:
    warps_a_scheduler: float
    groups: float  # of warps that multiply at the same time
    memory_latency: int
    now: float = 0.0
    matrix_free: float = 0.0  # when the tensor cores have done what was asked of them
    ready: dict[str, float] = field(default_factory=dict)  # by register
    products: deque[float] = field(default_factory=deque)  # ends of groups of products under way
    copies: deque[float] = field(default_factory=deque)  # arrivals of groups of copies under way

    def step(self, each: Instruction) -> None:
        start = max([self.now, *(self.ready.get(name, 0.0) for name in _sources(each))])
        self.now = start + self.warps_a_scheduler * hopper.occupancy(each)
        if each.kind == "HGMMA":
            cycles = each.flops * 4 * self.groups / hopper.MATRIX_FLOPS
            self.matrix_free = max(self.matrix_free, start) + cycles
            if "gsb0" in each.operands:
                self.products.append(self.matrix_free)
        elif each.name.startswith("WARPGROUP.DEPBAR"):
            self._wait(self.products, int(each.operands[1], 16))
        elif each.kind == "LDGDEPBAR":
            self.copies.append(self.now + self.memory_latency)
        elif each.name.startswith("DEPBAR"):
            self._wait(self.copies, int(each.operands[1], 16))
        elif each.kind in ("BAR", "MEMBAR", "FENCE"):
            self.now += hopper.latency(each)
        delay = self.memory_latency if each.kind == "LDG" else hopper.latency(each)
        for name in _results(each):
            self.ready[name] = self.now + delay

    def _wait(self, under_way: deque[float], left: int) -> None:
        while len(under_way) > left:
            self.now = max(self.now, under_way.popleft())


def cycles_alone(code: Code, num_warps: int, memory_latency: int) -> float:
    """Of one round through a loop's body, once it has settled; of code without a loop, from start to end."""
    walk = _Walk(max(num_warps / hopper.SCHEDULERS, 1.0), max(num_warps / 4, 1.0), memory_latency)
    ends = [0.0]
    for _ in range(_ROUNDS if code.is_loop else 1):
        for each in code.instructions:
            if each.predicate != "!PT":
                walk.step(each)
        ends.append(walk.now)
    return (ends[-1] - ends[2]) / (_ROUNDS - 2) if code.is_loop else ends[-1]


def _registers(operand: str, count: int = 1) -> list[str]:
    names = []
    for file, number, wide in _REGISTER.findall(operand):
        names += [f"{file}{int(number) + offset}" for offset in range(2 if wide else count)]
    return names


def _results(each: Instruction) -> list[str]:
    if each.kind in _WRITES_NOTHING or not each.operands:
        return []
    if each.kind == "HMMA":
        return _registers(each.operands[0], 4)
    wide = each.kind in ("LDS", "LDSM", "LDG")
    count = each.thread_bytes // 4 if wide else 2 if ".WIDE" in each.name else 1
    names = _registers(each.operands[0], max(count, 1))
    # A comparison or a sum with carry writes predicates too.
    return names + [
        name for operand in each.operands[1:2] for name in _registers(operand) if name.startswith("P")
    ]


def _sources(each: Instruction) -> list[str]:
    names = [] if each.predicate is None else _registers(each.predicate)
    if (
        each.kind == "HGMMA"
    ):  # its sums stay where they are; what it multiplies out of registers was just written
        return names + [name for operand in each.operands[1:] for name in _registers(operand)]
    first = 0 if each.kind in _WRITES_NOTHING else 1
    counts = _OPERAND_REGISTERS.get(each.kind, ())
    for place, operand in enumerate(each.operands[first:], first):
        names += _registers(operand, counts[place] if place < len(counts) else 1)
    return names
