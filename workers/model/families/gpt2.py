"""GPT-2. Its linears are saved as [inputs, outputs], and the hub's own checkpoints hold the body without its prefix."""

from __future__ import annotations

from workers.model.families.activations import activation
from workers.model.families.heads import head_size
from workers.model.hf_config import HfConfig
from workers.model.model_spec import (
    AttentionSpec,
    EmbeddingSpec,
    LayerSpec,
    LearnedPositions,
    MlpSpec,
    ModelSpec,
    NormKind,
    NormSpec,
    WeightNames,
)


def spec(config: HfConfig) -> ModelSpec:
    if config.flag("add_cross_attention"):
        raise config.unsupported(
            "its add_cross_attention makes it the decoder of an encoder, which is not served"
        )
    hidden_size, num_heads = config.integer("n_embd"), config.integer("n_head")
    max_positions = config.integer("n_positions", 1024)
    return ModelSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_size(config, hidden_size, num_heads),
        max_positions=max_positions,
        norm=NormSpec(config.number("layer_norm_epsilon", 1e-5), NormKind.LAYER, bias=True),
        layers=layers(config),
        attention=AttentionSpec(bias=True, output_bias=True),
        embedding=EmbeddingSpec(positions=LearnedPositions(max_positions)),
        tied_embeddings=config.flag("tie_word_embeddings", True),
    )


def layers(config: HfConfig) -> tuple[LayerSpec, ...]:
    """All alike, unless each divides its attention scores by its number."""
    hidden_size, num_layers = config.integer("n_embd"), config.integer("n_layer")
    mlp = MlpSpec(
        features=config.integer("n_inner", 4 * hidden_size),
        activation=activation(config, "activation_function", "gelu_new"),
        gated=False,
        bias=True,
    )
    head_dim = hidden_size // config.integer("n_head")
    scale = head_dim**-0.5 if config.flag("scale_attn_weights", True) else 1.0
    divided = config.flag("scale_attn_by_inverse_layer_idx")
    return tuple(
        LayerSpec(mlp, attention_scale=scale / (index + 1) if divided else scale)
        for index in range(num_layers)
    )


def names(config: HfConfig) -> WeightNames:
    return WeightNames(
        embedding="wte",
        positions="wpe",
        attention_norm="h.{}.ln_1",
        qkv=("h.{}.attn.c_attn",),
        o="h.{}.attn.c_proj",
        mlp_norm="h.{}.ln_2",
        gate_up=("h.{}.mlp.c_fc",),
        down="h.{}.mlp.c_proj",
        final_norm="ln_f",
        lm_head="lm_head",
        prefix="transformer.",
        transposed=True,
        ignored=(".attn.bias", ".attn.masked_bias"),  # causal masks
    )
