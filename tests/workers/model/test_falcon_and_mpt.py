"""What Falcon's and MPT's configs may ask for, and their ALiBi over contexts that the common tests do not reach."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from protocol.errors import UnsupportedModel
from workers.model.families import falcon, mpt
from workers.model.families.positions import alibi_slopes
from workers.model.families.registry import find_family
from workers.model.hf_config import HfConfig
from workers.model.model_spec import AlibiSpec, ResidualOrder

FALCON = {"vocab_size": 99, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6}
MPT = {"vocab_size": 99, "d_model": 48, "n_layers": 2, "n_heads": 6}


def falcon_config(**values: Any) -> HfConfig:
    return HfConfig({**FALCON, **values}, "config.json")


def mpt_config(attention: dict[str, Any] | None = None, **values: Any) -> HfConfig:
    return HfConfig({**MPT, "attn_config": attention or {}, **values}, "config.json")


@pytest.mark.parametrize("num_heads", (1, 2, 3, 4, 6, 8, 12, 16, 20, 32, 64, 71, 128, 232))
def test_falcons_slopes_are_those_of_transformers_to_the_bit(num_heads: int) -> None:
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 700, dtype=torch.int64), num_heads, torch.float32)[:, 0]
    slopes = torch.tensor(alibi_slopes(num_heads)).bfloat16()[:, None]
    assert torch.equal((slopes * torch.arange(700)).float(), theirs)


@pytest.mark.parametrize("max_bias", (8, 16))
@pytest.mark.parametrize("num_heads", (1, 2, 3, 4, 6, 12, 16, 24, 32, 40, 64))
def test_mpts_slopes_are_those_of_transformers(num_heads: int, max_bias: int) -> None:
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    theirs = -build_mpt_alibi_tensor(num_heads, 2, max_bias)[:, 0, 0]
    (positions,) = {layer.positions for layer in mpt.spec(mpt_config({"alibi_bias_max": max_bias})).layers}
    assert positions == AlibiSpec(alibi_slopes(6, max_bias))
    torch.testing.assert_close(torch.tensor(alibi_slopes(num_heads, max_bias)), theirs)


@pytest.mark.parametrize(
    "variant", ("falcon_all_heads_alibi_biased", "falcon_multi_query_alibi", "mpt_twelve_heads")
)
def test_biases_hold_over_a_long_prompt_in_chunks(
    variant: str,
    open_runner: Any,
    make_checkpoint: Any,
    reference_logits: Any,
    record_logits: Any,
    drive: Any,
) -> None:
    prompt = [(7 * index) % 97 for index in range(430)]  # bfloat16 holds no integer above 256 exactly
    runner = open_runner(variant)
    recorded, driver = record_logits(runner), drive(runner)
    row = driver.add(prompt)
    driver.generate([row], 8, chunk=170)
    expected = reference_logits(make_checkpoint(variant), driver.sequences[row].tokens)[len(prompt) - 1 : -1]
    torch.testing.assert_close(torch.cat(recorded), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ResidualOrder.PARALLEL_ONE_NORM),
        ({"parallel_attn": False}, ResidualOrder.NORM_BEFORE),
        ({"new_decoder_architecture": True}, ResidualOrder.PARALLEL),
        ({"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}, ResidualOrder.PARALLEL_ONE_NORM),
    ],
)
def test_falcons_config_decides_on_the_order(given: dict[str, Any], expected: ResidualOrder) -> None:
    assert falcon.spec(falcon_config(**given)).order is expected


@pytest.mark.parametrize(
    "given",
    [
        {"new_decoder_architecture": True, "parallel_attn": False},
        {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 3},
        {"num_ln_in_parallel_attn": 2},
    ],
)
def test_orders_that_no_falcon_has_are_refused_with_those_that_there_are(given: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match=r"num_ln_in_parallel_attn . do not go together: the new"):
        falcon.spec(falcon_config(**given))


def test_falcons_residuals_behind_the_norms_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="apply_residual_connection_post_layernorm"):
        falcon.spec(falcon_config(apply_residual_connection_post_layernorm=True))


@pytest.mark.parametrize(
    ("given", "attention", "message"),
    [
        ({"no_bias": False}, {}, "its no_bias is False, and only True is known"),
        (
            {"logit_scale": "inv_sqrt_d_model"},
            {},
            "its logit_scale is 'inv_sqrt_d_model', and only None is known",
        ),
        ({"norm_type": "rmsnorm"}, {}, "its norm_type is 'rmsnorm'"),
        (
            {},
            {"attn_type": "multiquery_attention"},
            "attn_config .*: its attn_type is 'multiquery_attention'",
        ),
        ({}, {"alibi": False}, "its alibi is False, and only True is known"),
        ({}, {"prefix_lm": True}, "its prefix_lm is True"),
        ({}, {"qk_ln": True}, "its qk_ln is True"),
        ({}, {"sliding_window_size": 64}, "its sliding_window_size is 64"),
    ],
)
def test_what_mpts_config_asks_for_in_vain_is_named(
    given: dict[str, Any], attention: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        mpt.spec(mpt_config(attention, **given))


def test_mpts_config_decides_on_features_scale_and_clip() -> None:
    found = mpt.spec(mpt_config({"softmax_scale": 0.5, "clip_qkv": 0}, expansion_ratio=2))
    assert (found.layers[0].mlp.features, found.attention.scale, found.attention.clip) == (96, 0.5, None)


def test_mpt_is_known_by_the_name_that_its_makers_gave_it() -> None:
    (ours, theirs) = (
        find_family(mpt_config(architectures=[name])) for name in ("MptForCausalLM", "MPTForCausalLM")
    )
    assert ours.spec(mpt_config()) == theirs.spec(mpt_config())
