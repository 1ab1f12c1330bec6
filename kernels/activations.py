"""act(x), and act(gate) · up of the fused projection [gate | up], by the activation's name.

silu       x · sigmoid(x)
gelu       x · (1 + erf(x / sqrt(2))) / 2
gelu_tanh  x · (1 + tanh(sqrt(2 / pi) · (x + 0.044715 · x³))) / 2
relu       max(x, 0)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.silu_mul import silu_mul

Activate = Callable[[Tensor], Tensor]


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def gated(activate: Activate) -> Activate:
    """Of [tokens, 2 · features] to [tokens, features]. `activate` returns a tensor of its own."""

    def activate_and_mul(gate_up: Tensor) -> Tensor:
        features = gate_up.shape[-1] // 2
        return activate(gate_up[:, :features]).mul_(gate_up[:, features:])

    return activate_and_mul


ACTIVATIONS: dict[str, Activate] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "relu": torch.relu,
}
GATED_ACTIVATIONS: dict[str, Activate] = {
    name: silu_mul if name == "silu" else gated(activate) for name, activate in ACTIVATIONS.items()
}
