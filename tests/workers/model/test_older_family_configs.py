"""What configs of OPT, GPT-2, GPT-NeoX and Phi-3 say, in the words of several years, and what of it is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from protocol.errors import InvalidRequest, UnsupportedModel
from workers.model.families import gpt2, gpt_neox, opt, phi3
from workers.model.hf_config import HfConfig
from workers.model.model_spec import Activation, LongScaling, ResidualOrder, RotarySpec

OPT_125M = {
    "vocab_size": 50272,
    "hidden_size": 768,
    "ffn_dim": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 2048,
    "word_embed_proj_dim": 768,
}
GPT2 = {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024}
PYTHIA = {
    "vocab_size": 50304,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "rotary_pct": 0.25,
    "rotary_emb_base": 20000,
}
PHI3 = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
}
FACTORS = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}


def config(values: dict[str, Any], **changed: Any) -> HfConfig:
    return HfConfig({**values, **changed}, "config.json")


def test_opt_has_two_rows_before_its_first_position() -> None:
    positions = opt.spec(config(OPT_125M)).embedding.positions
    assert positions is not None
    assert (positions.num_rows, positions.offset) == (2050, 2)


def test_opt_is_tied_and_biased_unless_it_says_otherwise() -> None:
    spec = opt.spec(config(OPT_125M))
    assert spec.tied_embeddings and spec.attention.bias and spec.attention.output_bias
    assert not opt.spec(config(OPT_125M, tie_word_embeddings=False)).tied_embeddings


def test_an_opt_that_normalizes_after_has_no_final_norm() -> None:
    spec = opt.spec(config(OPT_125M, do_layer_norm_before=False))
    assert (spec.order, spec.final_norm) == (ResidualOrder.NORM_AFTER, False)


def test_gpt2s_mlp_is_four_times_as_wide_where_nothing_is_said() -> None:
    assert [gpt2.spec(config(GPT2, n_inner=n)).layers[0].mlp.features for n in (None, 100)] == [3072, 100]


def test_gpt2s_layers_share_one_scale_unless_they_are_told_to_differ() -> None:
    def scales(**changed: Any) -> set[float | None]:
        return {layer.attention_scale for layer in gpt2.spec(config(GPT2, **changed)).layers}

    assert scales() == {0.125}
    assert scales(scale_attn_weights=False) == {1.0}
    assert scales(scale_attn_by_inverse_layer_idx=True) == {0.125 / (index + 1) for index in range(12)}


def test_a_pythia_of_before_transformers_5_is_read() -> None:
    spec = gpt_neox.spec(config(PYTHIA))
    assert spec.layers[0].positions == RotarySpec(20000.0, dims=16)
    assert (spec.order, spec.tied_embeddings) == (ResidualOrder.PARALLEL, False)
    assert spec.layers[0].mlp.activation is Activation.GELU


@pytest.mark.parametrize("name", ("longrope", "su", "yarn"))
def test_all_names_that_longrope_had_are_read(name: str) -> None:
    spec = phi3.spec(config(PHI3, rope_scaling={"type": name, **FACTORS}))
    positions = spec.layers[0].positions
    assert isinstance(positions, RotarySpec) and isinstance(positions.scaling, LongScaling)
    assert positions.scaling.long_factors == (2.0,) * 48
    assert positions.scaling.attention_factor == pytest.approx(1.1902380714238083)
    assert (spec.max_positions, spec.default_positions) == (131072, 4096)


def test_a_phi3_window_is_every_layers() -> None:
    assert {layer.window for layer in phi3.spec(config(PHI3, sliding_window=2047)).layers} == {2047}


@pytest.mark.parametrize(
    ("family", "values", "changed", "message"),
    [
        (opt, OPT_125M, {"num_attention_heads": 10}, "hidden size 768 is not a multiple of its 10 heads"),
        (opt, OPT_125M, {"activation_function": "selu"}, "activation_function is 'selu'"),
        (gpt2, GPT2, {"add_cross_attention": True}, "add_cross_attention"),
        (gpt2, GPT2, {"n_head": 7}, "768 is not a multiple of its 7 heads"),
        (gpt_neox, PYTHIA, {"rotary_pct": 0.05}, "only pairs can"),
        (gpt_neox, PYTHIA, {"hidden_act": "tanh"}, "hidden_act is 'tanh'"),
        (phi3, PHI3, {"attention_bias": True}, "attention_bias"),
        (phi3, PHI3, {"mlp_bias": True}, "mlp_bias"),
        (phi3, PHI3, {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "long_factor"),
        (
            phi3,
            PHI3,
            {"rope_scaling": {"type": "longrope", **FACTORS, "short_factor": [1.0]}},
            "short_factor",
        ),
    ],
)
def test_what_a_config_asks_for_and_cannot_have_is_named(
    family: Any, values: dict[str, Any], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        family.spec(config(values, **changed))


LONG_PROMPT = [(7 * index) % 97 for index in range(150)]  # past the original context of 128


def test_more_than_the_original_context_is_turned_by_the_long_factors(
    make_checkpoint: Any, open_runner: Any, reference_logits: Any, record_logits: Any, drive: Any
) -> None:
    runner = open_runner("phi3_longrope", max_model_len=512)
    recorded, driver = record_logits(runner), drive(runner)
    driver.generate([driver.add(LONG_PROMPT)], 16, chunk=40)
    tokens = driver.sequences[0].tokens
    expected = reference_logits(make_checkpoint("phi3_longrope"), tokens)[len(LONG_PROMPT) - 1 : -1]
    torch.testing.assert_close(torch.cat(recorded), expected, rtol=1e-4, atol=1e-3)
    assert driver.sequences[0].generated == expected.argmax(-1).tolist()


def test_the_original_context_is_served_unless_more_is_asked_for(open_runner: Any) -> None:
    assert open_runner("phi3_longrope").facts.max_model_len == 128
    assert open_runner("phi3_longrope", max_model_len=1024).facts.max_model_len == 1024
    with pytest.raises(InvalidRequest, match="1025 is over the model's 1024 positions"):
        open_runner("phi3_longrope", max_model_len=1025)


def test_a_context_that_could_be_longer_is_said_aloud(open_runner: Any, caplog: Any) -> None:
    open_runner("phi3_longrope")
    assert "the context is 128 tokens; max_model_len may ask for up to 1024" in caplog.text
    caplog.clear()
    open_runner("phi3_longrope", max_model_len=1024)
    assert not caplog.text
