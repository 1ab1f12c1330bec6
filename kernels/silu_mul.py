"""silu(gate) · up, of the fused projection [gate | up]."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def silu_mul(gate_up: Tensor) -> Tensor:  # [tokens, 2 · features] -> [tokens, features]
    features = gate_up.shape[-1] // 2
    return F.silu(gate_up[:, :features]).mul_(gate_up[:, features:])
