"""residual += x;  y = residual / sqrt(mean(residual²) + eps) · weight. The statistics are fp32 in every dtype.

Composed of few, small operators: `F.rms_norm` takes half as long again on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor


def add_rms_norm(
    x: Tensor,  # [tokens, hidden]
    residual: Tensor,  # [tokens, hidden], x is added to it in place
    weight: Tensor,  # [hidden]
    eps: float,
) -> Tensor:  # [tokens, hidden]
    return rms_norm(residual.add_(x), weight, eps)


def rms_norm(
    x: Tensor,  # [tokens, hidden]
    weight: Tensor,  # [hidden]
    eps: float,
) -> Tensor:  # [tokens, hidden]
    norm = torch.linalg.vector_norm(x, 2, -1, True, dtype=torch.float32)
    scale = norm.mul_(norm).mul_(1.0 / x.shape[-1]).add_(eps).rsqrt_()  # [tokens, 1]
    out = torch.empty_like(x)
    return torch.mul(x, scale, out=out).mul_(weight)  # `out` rounds to x's dtype once, after the product


def rms_norm_heads(
    heads: Tensor,  # [tokens, heads, head_dim], normed in place, each head by itself
    weight: Tensor,  # [heads, head_dim]
    eps: float,
) -> None:
    norm = torch.linalg.vector_norm(heads, 2, -1, True, dtype=torch.float32)
    scale = norm.mul_(norm).mul_(1.0 / heads.shape[-1]).add_(eps).rsqrt_()  # [tokens, heads, 1]
    heads.mul_(scale).mul_(weight)
