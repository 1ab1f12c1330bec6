"""y = (x - mean(x)) / sqrt(variance(x) + eps) · weight + bias, over the last axis. The statistics are fp32."""

from __future__ import annotations

import torch
from torch import Tensor


def layer_norm(
    x: Tensor,  # [tokens, hidden]
    weight: Tensor,  # [hidden]
    bias: Tensor | None,  # [hidden]
    eps: float,
) -> Tensor:  # [tokens, hidden]
    return torch.layer_norm(x, weight.shape, weight, bias, eps)
