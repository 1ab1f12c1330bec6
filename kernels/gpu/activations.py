"""act(x), and act(gate) · up of the fused projection [gate | up], as `kernels/activations.py` means them.

    silu       x · sigmoid(x)
    gelu       x · (1 + erf(x / sqrt(2))) / 2
    gelu_tanh  x · sigmoid(2 · sqrt(2 / pi) · (x + 0.044715 · x³)), which is x · (1 + tanh(half of that)) / 2
    relu       max(x, 0)

Computed in fp32 and rounded once. An element's bits depend on nothing but itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from kernels.activations import Activate
from kernels.gpu.compilation import PINNED_OPTIONS, Compiled
from kernels.gpu.row_block import assert_rows

_BLOCK = 1024  # features of a program: a vector of 16 bytes for each of 128 threads, in bf16


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):  # fp32, any shape
    if ACTIVATION == "silu":
        return x * tl.sigmoid(x)
    elif ACTIVATION == "gelu":
        return x * (0.5 + 0.5 * tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:
        tl.static_assert(ACTIVATION == "relu")
        return tl.maximum(x, 0.0)


@triton.jit
def _activate_kernel(
    x_ptr,  # [tokens, features], or [tokens, 2 · features] where GATED
    out_ptr,  # [tokens, features], written
    x_stride,  # elements from one row to the next
    features,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < features
    x_ptrs = x_ptr + row * x_stride + offs
    y = _activated(tl.load(x_ptrs, mask, 0.0).to(tl.float32), ACTIVATION)  # (BLOCK)
    if GATED:
        y *= tl.load(x_ptrs + features, mask, 0.0).to(tl.float32)
    tl.store(out_ptr + row * features + offs, y, mask)


@dataclass(frozen=True, slots=True)
class Activation:
    """One of them, plain or gated."""

    name: str
    gated: bool

    def __call__(
        self,
        x: Tensor,  # [tokens, features], or [tokens, 2 · features] where it is gated
    ) -> Tensor:  # [tokens, features]
        num_tokens, width = x.shape
        features = width // 2 if self.gated else width
        assert_rows("x", x, 2 * features if self.gated else features)
        out = x.new_empty(num_tokens, features)
        _activate_kernel[(num_tokens, triton.cdiv(features, _BLOCK))](
            x, out, x.stride(0), features, **self.constexprs, **PINNED_OPTIONS
        )
        return out

    @property
    def constexprs(self) -> dict[str, Any]:
        return {"ACTIVATION": self.name, "GATED": self.gated, "BLOCK": _BLOCK}


_NAMES = ("silu", "gelu", "gelu_tanh", "relu")
ACTIVATIONS: Mapping[str, Activate] = {name: Activation(name, gated=False) for name in _NAMES}
GATED_ACTIVATIONS: Mapping[str, Activate] = {name: Activation(name, gated=True) for name in _NAMES}

COMPILED = tuple(
    Compiled(
        name=f"{activation.name}{'_mul' if activation.gated else ''} bf16",
        kernel=_activate_kernel,
        types={"x_ptr": "*bf16", "out_ptr": "*bf16", "x_stride": "i32", "features": "i32"},
        constexprs=activation.constexprs,
        aligned=("x_stride", "features"),
    )
    for activation in (
        *(Activation(name, gated=True) for name in _NAMES),
        Activation("gelu_tanh", gated=False),
    )
)
