"""Checkpoints whose weights are fp8 already: what is computed of them, by whom, and what stays wide."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.fp8_linear import Fp8Linear
from kernels.quantize_fp8 import Fp8Weight, quantize_fp8
from protocol.errors import UnsupportedModel
from tests.workers.model.fp8_models import (
    CONFIGS,
    PROMPT,
    SCORED,
    Fp8Checkpoint,
    logits_of_ranks,
    logits_of_transformers,
    store_in_fp8,
)
from workers.model.weights.fp8_pieces import read_fp8_piece
from workers.model.weights.weight_piece import Piece, stacked
from workers.shard import Shard

Store = Callable[..., Fp8Checkpoint]


@pytest.fixture
def store(make_checkpoint: Any, tmp_path: Path) -> Store:
    places = count()

    def store_one(layout: str, variant: str = "untied_llama3", **given: Any) -> Fp8Checkpoint:
        return store_in_fp8(make_checkpoint(variant), tmp_path / str(next(places)), layout, **given)

    return store_one


@pytest.mark.parametrize("num_ranks", (1, 2))
@pytest.mark.parametrize("layout", CONFIGS)
def test_logits_are_those_of_transformers_with_the_stored_weights(
    layout: str, num_ranks: int, store: Store, record_logits: Any
) -> None:
    stored = store(layout)
    found = logits_of_ranks(stored.directory, num_ranks, record_logits)
    meant = logits_of_transformers(stored.wide, num_ranks, quantise_weights="block" in layout)
    assert (found - meant).abs().max() < 1e-3 * meant.abs().max()


@pytest.mark.parametrize("layout", ("channel", "tensor"))
def test_the_stored_numbers_are_multiplied_bit_for_bit(layout: str, store: Store, open_runner: Any) -> None:
    stored = store(layout)
    attention = open_runner(stored.directory)._decoder._layers[1].attention
    modules = [f"model.layers.1.self_attn.{name}_proj" for name in "qkv"]
    numbers = torch.cat([stored.numbers[module].view(torch.uint8) for module in modules])
    scales = [
        stored.scales[module].float().expand(len(stored.numbers[module]), 1).flatten() for module in modules
    ]
    assert torch.equal(torch.cat(attention._qkv._parts).view(torch.uint8), numbers)
    assert torch.equal(attention._qkv._scales[0] / 256.0, torch.cat(scales))


@pytest.mark.parametrize("num_ranks", (1, 2))
def test_ignored_modules_are_computed_wide(num_ranks: int, store: Store, record_logits: Any) -> None:
    ignored = ("layers.0.", "layers.2.mlp.down_proj")
    stored = store("channel", ignored=ignored)
    found = logits_of_ranks(stored.directory, num_ranks, record_logits, quantization="fp8")
    meant = logits_of_transformers(stored.wide, num_ranks, False, ignored)
    assert (found - meant).abs().max() < 1e-3 * meant.abs().max()


def test_a_weight_of_which_a_part_is_ignored_is_wide_throughout(store: Store, open_runner: Any) -> None:
    layers = open_runner(store("channel", ignored=("layers.1.self_attn.k_proj",)).directory)._decoder._layers
    assert [isinstance(layer.attention._qkv, Fp8Linear) for layer in layers] == [True, False, True]


def test_experts_are_fp8_or_wide_layer_by_layer(store: Store, open_runner: Any) -> None:
    ignored = ("layers.1.block_sparse_moe", "layers.2.block_sparse_moe.experts.3.w2")
    layers = open_runner(store("channel", "mixtral", ignored=ignored).directory)._decoder._layers
    linears = [[each for pair in layer.mix._mlp._experts._experts for each in pair] for layer in layers]
    assert [{isinstance(each, Fp8Linear) for each in of_one} for of_one in linears] == [
        {True},
        {False},
        {False},
    ]


@pytest.mark.parametrize("variant", ("mixtral", "phi3_longrope", "qwen3"))
def test_families_compute_what_fp8_makes_of_the_wide_weights(
    variant: str, store: Store, record_logits: Any
) -> None:
    """A channel's largest number is the format's, so that quantising what was widened gives the same numbers."""
    stored = store("channel", variant)
    found = logits_of_ranks(stored.directory, 1, record_logits)
    meant = logits_of_ranks(stored.wide, 1, record_logits, quantization="fp8")
    assert (found - meant).abs().max() < 1e-4 * meant.abs().max()


def test_a_matrix_beside_the_layers_is_widened(store: Store, record_logits: Any) -> None:
    numbers, scales = quantize_fp8(torch.randn(99, 48))
    narrow = {"lm_head.weight": numbers, "lm_head.weight_scale": scales}
    both = [store("channel", extra=extra) for extra in (narrow, {"lm_head.weight": numbers.float() * scales})]
    assert torch.equal(*(logits_of_ranks(each.directory, 1, record_logits) for each in both))


def test_rows_have_the_same_bits_alone_and_beside_others(store: Store, open_runner: Any, drive: Any) -> None:
    directory, found = store("fp8 block").directory, []
    for prompts, chunk in (([PROMPT], 64), ((PROMPT, [9, 8, 7], [*PROMPT, 5]), 3)):
        driver = drive(open_runner(directory, deterministic=True))
        driver.generate([driver.add(prompt, SCORED) for prompt in prompts], 4, chunk=chunk)
        found.append(driver.sequences[0].drawn)
    assert found[0] == found[1]


def test_numbers_for_amds_kind_of_fp8_stand_for_the_same() -> None:
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)[None]
    numbers = numbers[:, ~numbers.float().isnan()[0]]
    stored = read_fp8_piece(Piece("w", (1, 254)), Shard(0, 1), numbers, torch.tensor(0.25), None)
    target = Fp8Weight(torch.empty(1, 254, dtype=torch.float8_e4m3fnuz), torch.empty(1, 1))
    stored.put(target)
    assert torch.equal(target.numbers.float() * target.scales, numbers.float() * 0.25)


def test_noise_stands_for_such_weights_too(store: Store, open_runner: Any) -> None:
    runner = open_runner(store("fp8 block").directory, load_format="dummy")
    assert isinstance(runner._decoder._layers[0].attention._qkv, Fp8Linear)


@pytest.mark.parametrize(
    ("layout", "sentence"),
    (
        ("tensor", "scales of inputs (input_scale) are not used"),
        ("fp8 block", "stored in blocks, and quantized again"),
        ("channel", None),
    ),
)
def test_the_log_says_once_what_is_not_as_it_is_stored(
    layout: str, sentence: str | None, store: Store, open_runner: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "workers.model.model_description"):
        open_runner(store(layout).directory)
    told = [record.getMessage() for record in caplog.records]
    assert not told if sentence is None else len(told) == 1 and sentence in told[0]


def test_a_matrix_without_scales_is_refused(store: Store, open_runner: Any) -> None:
    numbers = torch.zeros(99, 48, dtype=torch.float8_e4m3fn)
    with pytest.raises(
        UnsupportedModel, match=r"lm_head.weight is of dtype float8_e4m3fn, and has no scales"
    ):
        open_runner(store("channel", extra={"lm_head.weight": numbers}).directory)


@pytest.mark.parametrize(
    ("shape", "named"), (((99, 2), "[99, 2]"), ((4, 3), "[4, 3]"), ((48,), "[48]")), ids=str
)
def test_scales_that_misfit_are_refused(
    shape: tuple[int, ...], named: str, store: Store, open_runner: Any
) -> None:
    numbers = torch.zeros(99, 48, dtype=torch.float8_e4m3fn)
    extra = {"lm_head.weight": numbers, "lm_head.weight_scale": torch.ones(shape)}
    with pytest.raises(UnsupportedModel, match=re.escape(f"has scales of shape {named}")):
        open_runner(store("fp8 block", extra=extra).directory)


def test_scales_of_a_plain_checkpoint_are_named_as_left_over(
    store: Store, open_runner: Any, edit_json: Any
) -> None:
    directory = store("channel").directory
    edit_json(directory / "config.json", quantization_config=None)
    with pytest.raises(UnsupportedModel, match=r"weight_scale is not part of this architecture"):
        open_runner(directory)


def test_a_transposed_matrix_is_refused() -> None:
    piece = Piece("w", (8, 4), 1, (stacked(4),), transposed=True)
    numbers = torch.zeros(4, 8, dtype=torch.float8_e4m3fn)
    with pytest.raises(UnsupportedModel, match="of which no scales are known"):
        read_fp8_piece(piece, Shard(0, 1), numbers, torch.ones(()), None)
