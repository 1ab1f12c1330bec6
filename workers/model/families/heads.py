"""How wide a head is, for families whose heads share the hidden size evenly."""

from __future__ import annotations

from workers.model.hf_config import HfConfig


def head_size(config: HfConfig, hidden_size: int, num_heads: int) -> int:
    if hidden_size % num_heads:
        raise config.unsupported(f"its hidden size {hidden_size} is not a multiple of its {num_heads} heads")
    return hidden_size // num_heads
