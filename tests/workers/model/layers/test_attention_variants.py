"""Which attention the layers of a model need on one rank."""

from __future__ import annotations

from kernels.attention_variant import AttentionVariant
from workers.model.families.positions import alibi_slopes
from workers.model.layers.attention_variants import distinct, layer_variants
from workers.model.model_spec import (
    Activation,
    AlibiSpec,
    AttentionSpec,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    NormSpec,
)
from workers.shard import Shard

MLP = MlpSpec(features=8, activation=Activation.RELU, gated=False)


def model(*layers: LayerSpec, attention: AttentionSpec | None = None) -> ModelSpec:
    """Eight heads of four dimensions."""
    return ModelSpec(
        vocab_size=10,
        hidden_size=32,
        num_heads=8,
        num_kv_heads=8,
        head_dim=4,
        max_positions=64,
        norm=NormSpec(1e-5),
        layers=layers,
        attention=attention or AttentionSpec(),
    )


def test_layers_that_attend_alike_share_one_attention() -> None:
    slides, sees_all = LayerSpec(MLP, window=16), LayerSpec(MLP)
    variants = layer_variants(model(slides, sees_all, slides, slides), Shard(), 64)
    assert distinct(variants) == (AttentionVariant(0.5, window=16), AttentionVariant(0.5))
    assert [distinct(variants).index(variant) for variant in variants] == [0, 1, 0, 0]


def test_a_window_that_the_context_never_leaves_is_none() -> None:
    spec = model(LayerSpec(MLP, window=16))
    assert layer_variants(spec, Shard(), 16) == (AttentionVariant(0.5),)
    assert layer_variants(spec, Shard(), 17) == (AttentionVariant(0.5, window=16),)


def test_each_rank_has_the_slopes_of_its_heads() -> None:
    slopes = alibi_slopes(8)
    spec = model(LayerSpec(MLP, positions=AlibiSpec(slopes)))
    found = [layer_variants(spec, Shard(rank, 2), 64)[0].alibi_slopes for rank in range(2)]
    assert found == [slopes[:4], slopes[4:]]


def test_a_layers_own_scale_goes_before_the_models() -> None:
    layers = LayerSpec(MLP), LayerSpec(MLP, attention_scale=0.1)
    variants = layer_variants(model(*layers, attention=AttentionSpec(scale=0.3, softcap=5.0)), Shard(), 64)
    assert variants == (AttentionVariant(0.3, softcap=5.0), AttentionVariant(0.1, softcap=5.0))
