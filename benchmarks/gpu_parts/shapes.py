"""The models that `gpu.py` times, as directories with a config.json and noise for weights, and their floors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from gpu_parts.ceilings import Ceilings


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a Llama."""

    hidden: int
    features: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    max_positions: int

    def write(self, directory: Path) -> Path:
        values = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.features,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_positions,
            "rope_theta": 500000.0,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
        }
        (directory / "config.json").write_text(json.dumps(values), encoding="utf-8")
        return directory

    @property
    def layer_parameters(self) -> int:
        """Of all layers' products."""
        qkv = self.hidden * (self.heads + 2 * self.kv_heads) * self.head_dim
        return self.layers * (
            qkv + self.heads * self.head_dim * self.hidden + 3 * self.hidden * self.features
        )

    @property
    def head_parameters(self) -> int:
        return self.vocabulary * self.hidden

    def token_bytes(self, itemsize: int) -> int:
        """Of one token's keys and values."""
        return 2 * self.layers * self.kv_heads * self.head_dim * itemsize

    def decode_floor_s(
        self, rows: int, length: int, itemsizes: tuple[int, int, int], ceilings: Ceilings
    ) -> float:
        """Weights are read or multiplied, whichever takes longer; then each row's keys and values are read.

        `itemsizes`: of layers' weights, of the head's, of keys and values. Eight bits are multiplied twice as fast.
        """
        layer, head, kv = itemsizes
        read = self.layer_parameters * layer + self.head_parameters * head
        multiplied = 2 * rows * (self.layer_parameters * min(layer, 2) / 2 + self.head_parameters)
        weights_s = max(read / ceilings.read_bytes_per_s, multiplied / ceilings.flops)
        return weights_s + rows * length * self.token_bytes(kv) / ceilings.read_bytes_per_s

    def prefill_floor_s(self, tokens: int, before: int, itemsize: int, ceilings: Ceilings) -> float:
        """Of so many tokens behind others that are cached. One of them draws."""
        pairs = tokens * before + tokens * (tokens + 1) // 2
        attention = 4 * self.layers * self.heads * self.head_dim * pairs
        products_s = (2 * self.layer_parameters * tokens + attention) / ceilings.flops
        weights_s = (self.layer_parameters + self.head_parameters) * itemsize / ceilings.read_bytes_per_s
        return max(products_s, weights_s)


LLAMA_8B = Shape(4096, 14336, 32, 32, 8, 128, 128_256, 131_072)
TINY = Shape(64, 160, 2, 4, 2, 16, 512, 2048)
