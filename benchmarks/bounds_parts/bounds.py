"""The shortest time in which a launch can be done, from its machine code: by each resource, and with warps in step."""

from __future__ import annotations

from dataclasses import dataclass

from bounds_parts import hopper
from bounds_parts.one_program import cycles_alone

from kernels.gpu.compilation import Compiled, Usage, disassemble, measure
from kernels.gpu.machine_code import Code, hot_code

TARGET = "sm_90"
_RESERVED_BYTES = 1024  # of shared memory, for each program
_REGISTERS_AT_ONCE = 8
_MOST_PROGRAMS = 32
_MOST_REUSED = 0.1  # of what is loaded comes from memory: so seldom that most rounds find all in the L2 cache


@dataclass(frozen=True, slots=True)
class Kernel:
    compiled: Compiled
    code: Code
    usage: Usage

    @staticmethod
    def of(compiled: Compiled) -> Kernel:
        return Kernel(compiled, hot_code(disassemble(compiled, TARGET)), measure(compiled, TARGET))

    @property
    def threads(self) -> int:
        return 32 * self.compiled.num_warps

    @property
    def programs_of_processor(self) -> int:
        registers = -(-self.usage.registers // _REGISTERS_AT_ONCE) * _REGISTERS_AT_ONCE * self.threads
        return min(
            hopper.REGISTERS // registers,
            hopper.SHARED_CAPACITY // (self.usage.shared_bytes + _RESERVED_BYTES),
            hopper.MAX_WARPS // self.compiled.num_warps,
            _MOST_PROGRAMS,
        )

    @property
    def round_bytes(self) -> int:
        """That a program reads in one round."""
        return self.code.memory_bytes * self.threads

    @property
    def rounds_in_flight(self) -> float:
        """Whose copies are on their way while a program works on another; keys and values are copies of their own."""
        if self.code.copies_in_flight is None:
            return 1.0
        groups = self.code.count("LDGDEPBAR")
        return self.code.copies_in_flight / groups

    def pipe_cycles(self) -> dict[str, float]:
        """Of a processor for one round of one program, by what is kept busy."""
        warps = self.compiled.num_warps
        instructions = [each for each in self.code.instructions if each.predicate != "!PT"]
        half_rate = sum(hopper.occupancy(each) for each in instructions if hopper.occupancy(each) == 2)
        share = hopper.WARP_MATRIX_SHARE if self.code.count("HMMA") else 1.0
        return {
            "issue slots": len(self.code.instructions) * warps / hopper.SCHEDULERS,
            "integers": half_rate * warps / hopper.SCHEDULERS,
            "exponentials": self.code.count("MUFU") * 8 * warps / hopper.SCHEDULERS,
            "products": self.code.flops * warps / hopper.MATRIX_FLOPS / share,
            "shared memory": sum(map(hopper.shared_bytes, instructions)) * warps / hopper.SHARED_BYTES,
        }


@dataclass(frozen=True, slots=True)
class Launch:
    """What a kernel is launched on."""

    kernel: str  # a configuration's name, or how it begins
    shape: str
    floor_s: float  # by the memory's bandwidth, or the rate of a library's matmul
    target: str
    memory_bytes: float  # read and written, each once: what is read again comes from the L2 cache
    programs: float
    rounds: float = 1.0  # of a program, on average
    loaded: float = 1.0  # share of what the code loads that is not masked


@dataclass(frozen=True, slots=True)
class Bound:
    name: str
    seconds: float


def bounds(kernel: Kernel, launch: Launch, l2_bytes_per_s: float = hopper.L2_BYTES_PER_S) -> list[Bound]:
    """By each resource, as if it alone counted."""
    rounds = launch.programs * launch.rounds
    read = rounds * kernel.round_bytes * launch.loaded
    # A processor that has work left has a whole program left.
    busy = min(launch.programs, hopper.PROCESSORS)
    found = [
        Bound(name, cycles * rounds / busy / hopper.CLOCK_HZ) for name, cycles in kernel.pipe_cycles().items()
    ]
    found.append(Bound("memory", launch.memory_bytes / hopper.MEMORY_BYTES_PER_S))
    found.append(Bound("L2 cache", read / l2_bytes_per_s))
    return found


def in_step(kernel: Kernel, launch: Launch) -> Bound:
    """With each program's warps in step, and as many programs side by side as fit."""
    from_memory = launch.memory_bytes > _MOST_REUSED * launch.programs * launch.rounds * kernel.round_bytes
    latency = hopper.MEMORY_LATENCY if from_memory else hopper.L2_LATENCY
    cycles = cycles_alone(kernel.code, kernel.compiled.num_warps, latency)
    waves = max(launch.programs / (hopper.PROCESSORS * kernel.programs_of_processor), 1.0)
    return Bound("latency", waves * launch.rounds * cycles / hopper.CLOCK_HZ)


def bytes_in_flight(kernel: Kernel, launch: Launch) -> float:
    """Of a processor, from memory or the L2 cache."""
    side_by_side = min(kernel.programs_of_processor, -(-launch.programs // hopper.PROCESSORS))
    return side_by_side * kernel.round_bytes * launch.loaded * kernel.rounds_in_flight
