"""What `add_rms_norm.py` and `layer_norm.py` share: how a norm of the residual stream is launched, and compiled.

Their kernels take x, which may be None, the residual stream, the vectors that a norm multiplies or adds, and what is
written; one program takes a whole row. What they compute is not known here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kernels.gpu.compilation import PINNED_OPTIONS, Compiled
from kernels.gpu.row_block import assert_packed, assert_rows, row_block


def launch_norm(
    kernel: Any,
    x: Tensor | None,  # [tokens, hidden]; None: nothing is added
    residual: Tensor,  # [tokens, hidden], x is added to it in place
    vectors: dict[str, Tensor | None],  # [hidden] each, as the kernel takes them
    eps: float,
) -> Tensor:  # [tokens, hidden]
    num_tokens, hidden = residual.shape
    assert_rows("the residual stream", residual, hidden)
    if x is not None:
        assert len(x) == num_tokens, f"{len(x)} rows are added to {num_tokens}"
        assert_rows("x", x, hidden)
    for name, vector in vectors.items():
        if vector is not None:
            assert_packed(name, vector, hidden)
    out = residual.new_empty(num_tokens, hidden)
    block, num_warps = row_block(hidden)
    kernel[(num_tokens,)](
        x,
        residual,
        *vectors.values(),
        out,
        0 if x is None else x.stride(0),
        residual.stride(0),
        eps,
        HIDDEN=hidden,
        BLOCK=block,
        num_warps=num_warps,
        **PINNED_OPTIONS,
    )
    return out


def compiled_norm(name: str, kernel: Any, hidden: int, adds: bool, **is_given: bool) -> Compiled:
    """In bf16. `is_given`: by the vectors' parameters."""
    block, num_warps = row_block(hidden)
    given = {"x_ptr": adds, "residual_ptr": True, **is_given, "out_ptr": True}
    strides = dict.fromkeys(("x_stride", "residual_stride"), "i32")
    return Compiled(
        name=f"{'add_' if adds else ''}{name}",
        kernel=kernel,
        types={pointer: "*bf16" for pointer in given if given[pointer]} | strides | {"eps": "fp32"},
        constexprs={"HIDDEN": hidden, "BLOCK": block}
        | dict.fromkeys(pointer for pointer in given if not given[pointer]),
        num_warps=num_warps,
        aligned=tuple(strides),
    )
