"""residual += x;  y = (residual - mean) / sqrt(variance + eps) · weight + bias, of each row. Statistics are fp32."""

from __future__ import annotations

import torch
from torch import Tensor


def add_layer_norm(
    x: Tensor,  # [tokens, hidden]
    residual: Tensor,  # [tokens, hidden], x is added to it in place
    weight: Tensor,  # [hidden]
    bias: Tensor | None,  # [hidden]
    eps: float,
) -> Tensor:  # [tokens, hidden]
    return layer_norm(residual.add_(x), weight, bias, eps)


def layer_norm(
    x: Tensor,  # [tokens, hidden]
    weight: Tensor,  # [hidden]
    bias: Tensor | None,  # [hidden]
    eps: float,
) -> Tensor:  # [tokens, hidden]
    return torch.layer_norm(x, weight.shape, weight, bias, eps)
