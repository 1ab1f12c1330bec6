"""What attention compiles to for the models that are served most, and for those that ask the most of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from kernels.attention_variant import AttentionVariant
from kernels.gpu.attention.combine import COMBINE_WARPS, combine_constants, combine_splits_kernel
from kernels.gpu.attention.paged_attention import constants, paged_attention_kernel
from kernels.gpu.attention.plan import AttentionShape
from kernels.gpu.attention.shapes import DECODE_SPLIT, attention_shapes
from kernels.gpu.compilation import FEW_ROWS, MANY_ROWS, TARGETS, Compiled
from kernels.gpu.fp8_types import FP8_TYPES

_PLAIN = AttentionVariant(1.0)
_INTEGERS = ("q_stride", "block_stride", "table_stride", "tiles_stride", "program_tokens", "window")
_FLOAT8 = {target: fp8.name for fp8 in FP8_TYPES for target in fp8.targets}


@dataclass(frozen=True, slots=True)
class _Use:
    name: str
    decode: bool
    group: int = 4
    head_dim: int = 128
    block_size: int = 64
    variant: AttentionVariant = _PLAIN
    float8: bool = False
    deterministic: bool = False
    targets: tuple[str, ...] = tuple(TARGETS)

    def shape(self, target: str) -> AttentionShape:
        decode, prefill = attention_shapes(
            target, self.group, self.head_dim, torch.bfloat16, self.deterministic, self.float8
        )
        return decode if self.decode else prefill

    def stored(self, target: str) -> str:
        return _FLOAT8[target] if self.float8 else "bf16"

    def configurations(self) -> Iterator[Compiled]:
        chosen = [(target, self.shape(target), self.stored(target)) for target in self.targets]
        for shape, stored in dict.fromkeys((shape, stored) for _, shape, stored in chosen):
            own = tuple(target for target, *choice in chosen if choice == [shape, stored])
            yield self._compiled(shape, stored, own)

    def _compiled(self, shape: AttentionShape, stored: str, targets: tuple[str, ...]) -> Compiled:
        types = {
            "q_ptr": "*bf16",
            "k_ptr": f"*{stored}",
            "v_ptr": f"*{stored}",
            "out_ptr": "*bf16",
            "tables_ptr": "*i32",
            "tiles_ptr": "*i32",
            "starts_ptr": "*i32",
            "slopes_ptr": "*fp32" if self.variant.alibi_slopes else None,
            "kv_scales_ptr": "*fp32" if self.float8 else None,
            "sums_ptr": "*fp32",
            "stats_ptr": "*fp32",
            **dict.fromkeys(_INTEGERS, "i32"),
            **dict.fromkeys(("score_scale", "bias_scale", "cap"), "fp32"),
        }
        instructions = FEW_ROWS if shape.block_m < 64 else MANY_ROWS
        compiled_for = constants(
            self.variant, shape, self.deterministic, self.group, self.head_dim, self.block_size
        )
        return Compiled(
            name=f"attention {self.name}, {stored},"
            f" M{shape.block_m} N{shape.block_n} D{self.head_dim} G{self.group} B{self.block_size}"
            f" W{shape.num_warps} S{shape.num_stages}",
            kernel=paged_attention_kernel,
            types={name: given for name, given in types.items() if given is not None},
            constexprs=compiled_for | {name: None for name, given in types.items() if given is None},
            num_warps=shape.num_warps,
            num_stages=shape.num_stages,
            aligned=("q_stride", "block_stride"),
            instructions={target: instructions[target] for target in targets},
            targets=targets,
        )


def _combine(head_dim: int, windowed: bool) -> Compiled:
    pointers = {
        "sums_ptr": "*fp32",
        "stats_ptr": "*fp32",
        "out_ptr": "*bf16",
        "tiles_ptr": "*i32",
        "starts_ptr": "*i32",
        "kv_scales_ptr": "*fp32",
    }
    return Compiled(
        name=f"attention combine{' windowed' if windowed else ''}, bf16 D{head_dim}",
        kernel=combine_splits_kernel,
        types=pointers | dict.fromkeys(("tiles_stride", "num_heads", "window"), "i32"),
        constexprs=combine_constants(DECODE_SPLIT, 4, head_dim, windowed),
        num_warps=COMBINE_WARPS,
    )


_GEMMA_2 = AttentionVariant(1.0, window=4096, softcap=50.0)
_FALCON = AttentionVariant(1.0, alibi_slopes=(1.0,), alibi_in_bfloat16=True)
_USES = (
    _Use("decode", True),
    _Use("decode", True, block_size=16, targets=("sm_80", "sm_90")),
    _Use("decode", True, float8=True, targets=tuple(_FLOAT8)),
    _Use("prefill", False),
    _Use("prefill", False, float8=True, targets=tuple(_FLOAT8)),
    _Use("deterministic", True, deterministic=True),
    _Use("deterministic", True, float8=True, deterministic=True, targets=tuple(_FLOAT8)),
    _Use("decode Gemma 2", True, group=2, head_dim=256, variant=_GEMMA_2),
    _Use("prefill Gemma 2", False, group=2, head_dim=256, variant=_GEMMA_2),
    _Use(
        "prefill Gemma 2", False, group=2, head_dim=256, variant=_GEMMA_2, float8=True, targets=tuple(_FLOAT8)
    ),
    _Use("decode Falcon", True, group=1, head_dim=64, variant=_FALCON, targets=("sm_90", "gfx942")),
    _Use("prefill Phi 3", False, group=1, head_dim=96, targets=("sm_90",)),
)
COMPILED = (
    *(each for use in _USES for each in use.configurations()),
    _combine(128, False),
    _combine(256, True),
)
