"""What a decoder is made of. `families/` derive it from a model's config.json; `model.py` and `weights.py` read it.

A field is here because some code reads it: a family that needs more adds the field together with its code.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Every position is divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Slow rotations are divided by `factor`, fast ones kept, those between blended (Llama 3.1's long context)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True)
class RotarySpec:
    theta: float
    scaling: LinearScaling | Llama3Scaling | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder with RMS norms before each part, rotary positions, grouped-query attention and a gated MLP."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int  # tokens
    norm_eps: float
    rotary: RotarySpec
    attention_bias: bool = False
    mlp_bias: bool = False
    tied_embeddings: bool = False


@dataclass(frozen=True, slots=True)
class WeightNames:
    """What a family calls its tensors in a checkpoint: templates over the layer's number, without `.weight`."""

    embedding: str
    attention_norm: str
    q: str
    k: str
    v: str
    o: str
    mlp_norm: str
    gate: str
    up: str
    down: str
    final_norm: str
    lm_head: str
    ignored: tuple[str, ...] = ()  # endings of tensors that checkpoints carry and nobody needs
