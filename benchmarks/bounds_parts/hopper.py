"""What an H200 does per clock cycle: the model's assumptions in numbers.

Measured on one: the memory's bandwidth and the library's matmul. The rates of the pipes are NVIDIA's, of the whitepaper
and the programming guide. All else, the L2 cache's bandwidth, every latency and the share that `mma` has of `wgmma`'s
rate, is recollection of microbenchmarks of other Hopper cards: to be measured before it decides anything alone.
"""

from __future__ import annotations

from kernels.gpu.machine_code import Instruction

PROCESSORS = 132
CLOCK_HZ = 1.755e9  # between the boost clock, 1.98, and what the power limit leaves a matmul, about 1.46
MEMORY_BYTES_PER_S = 4.3e12  # measured on an H200: a copy, read and write
MATMUL_FLOPS_PER_S = 788e12  # measured on an H200: cuBLAS, 8192³, bf16
# The cache's bandwidth is the least known and bounds the most rows, so two guesses are shown. The upper one was raised
# to where a Triton matmul of 128 x 256 tiles could be as fast as it is said to be: a matmul's row cannot confirm it.
L2_BYTES_PER_S, SLOW_L2_BYTES_PER_S = 7.0e12, 5.5e12
MATRIX_FLOPS = 4096  # per cycle and processor, dense bf16: `wgmma`
WARP_MATRIX_SHARE = 0.62  # of that, by a warp's own `mma`
SHARED_BYTES = 128  # per cycle and processor
SCHEDULERS = 4  # each issues one instruction per cycle
REGISTERS = 65536
SHARED_CAPACITY = 232_448  # bytes, of which each program takes 1024 more than it asks for
MAX_WARPS = 64

MEMORY_LATENCY = 1400  # cycles, loaded: 800 ns
L2_LATENCY = 500  # cycles, loaded

# Cycles for which an instruction of a warp keeps one of the four schedulers' pipes busy; others 1, of 32 lanes.
_HALF_RATE = (
    "IMAD", "IADD3", "VIADD", "LOP3", "SHF", "LEA", "ISETP", "SEL", "FSEL", "FSETP", "FMNMX", "VIMNMX", "VIADDMNMX",
    "PRMT", "PLOP3", "F2FP", "P2R", "R2P", "MOV",
)  # fmt: skip
_OCCUPANCY = dict.fromkeys(_HALF_RATE, 2) | {"MUFU": 8, "F2F": 8, "I2F": 8, "F2I": 8, "SHFL": 4}

# Cycles until another instruction of the same warp can use the result.
_ALU_LATENCY = 5
_LATENCY = {"MUFU": 20, "SHFL": 24, "LDS": 24, "LDSM": 30, "STS": 20, "STSM": 24, "F2F": 20, "I2F": 20}
_LATENCY |= {"S2R": 20, "HMMA": 33, "BAR": 30, "MEMBAR": 20, "FENCE": 20, "S2UR": 20, "LDC": 30, "ULDC": 20}


def occupancy(instruction: Instruction) -> float:
    """Cycles of a scheduler's pipe."""
    if instruction.kind == "HMMA":
        return instruction.flops / (MATRIX_FLOPS / SCHEDULERS * WARP_MATRIX_SHARE)
    return _OCCUPANCY.get(instruction.kind, 1)


def latency(instruction: Instruction) -> int:
    return _LATENCY.get(instruction.kind, _ALU_LATENCY)


def shared_bytes(instruction: Instruction) -> int:
    """A warp's traffic with shared memory; of a product of a group of warps, its share of both tiles."""
    if instruction.predicate == "!PT":
        return 0
    if instruction.kind in ("LDS", "LDSM", "STS", "STSM", "LDGSTS"):
        return 32 * instruction.thread_bytes
    if instruction.kind == "HGMMA":
        rows, columns, depth = (int(size) for size in instruction.name.split(".")[1].split("x"))
        from_shared = sum(operand.startswith("gdesc") for operand in instruction.operands)
        left = rows if instruction.operands[1].startswith("gdesc") else 0
        return (left + columns) * depth * 2 // 4 if from_shared else 0
    return 0
