"""MPT: ALiBi, no biases, not even in its norms, and queries, keys and values that may be clipped.

Where a config asks for more than transformers does, it is done if it is one number (`expansion_ratio`,
`alibi_bias_max`) and refused otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping

from workers.model.families.heads import head_size
from workers.model.families.positions import alibi_slopes
from workers.model.hf_config import HfConfig
from workers.model.model_spec import (
    Activation,
    AlibiSpec,
    AttentionSpec,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    NormKind,
    NormSpec,
    WeightNames,
)

# The only values that are known, of fields that may be missing.
_BODY: Mapping[str, tuple[object, ...]] = {
    "no_bias": (True,),
    "logit_scale": (None,),
    "norm_type": ("low_precision_layernorm", "layernorm"),
}
_ATTENTION: Mapping[str, tuple[object, ...]] = {
    "attn_type": ("multihead_attention",),
    "alibi": (True,),
    "prefix_lm": (False,),
    "qk_ln": (False,),
    "qk_gn": (False,),
    "rope": (False,),
    "sliding_window_size": (-1,),
}


def spec(config: HfConfig) -> ModelSpec:
    attention = config.section("attn_config")
    _refuse_others(config, _BODY)
    _refuse_others(attention, _ATTENTION)
    hidden_size, num_heads = config.integer("d_model"), config.integer("n_heads")
    mlp = MlpSpec(int(config.number("expansion_ratio", 4.0) * hidden_size), Activation.GELU, gated=False)
    positions = AlibiSpec(alibi_slopes(num_heads, attention.number("alibi_bias_max", 8.0)))
    return ModelSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_size(config, hidden_size, num_heads),
        max_positions=config.integer("max_seq_len", 2048),
        norm=NormSpec(config.number("layer_norm_epsilon", 1e-5), NormKind.LAYER),
        layers=(LayerSpec(mlp, positions),) * config.integer("n_layers"),
        attention=AttentionSpec(
            scale=attention.optional_number("softmax_scale"),
            clip=attention.optional_number("clip_qkv") or None,  # 0 clips nothing
        ),
        tied_embeddings=config.flag("tie_word_embeddings", True),
    )


def names(config: HfConfig) -> WeightNames:
    return WeightNames(
        embedding="wte",
        attention_norm="blocks.{}.norm_1",
        qkv=("blocks.{}.attn.Wqkv",),
        o="blocks.{}.attn.out_proj",
        mlp_norm="blocks.{}.norm_2",
        gate_up=("blocks.{}.ffn.up_proj",),
        down="blocks.{}.ffn.down_proj",
        final_norm="norm_f",
        lm_head="lm_head",
        prefix="transformer.",
    )


def _refuse_others(config: HfConfig, known: Mapping[str, tuple[object, ...]]) -> None:
    for name, values in known.items():
        if name in config and config.values[name] not in values:
            only = " or ".join(map(repr, values))
            raise config.unsupported(f"its {name} is {config.values[name]!r}, and only {only} is known")
