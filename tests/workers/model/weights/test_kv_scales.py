"""Scales of keys and values that a checkpoint brings for a pool of fp8, on a CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from protocol.errors import UnsupportedModel
from tests.workers.model.fp8_models import CONFIGS, PROMPT, logits_of_ranks, store_in_fp8
from workers.model.weights.checkpoint import open_checkpoint
from workers.model.weights.fp8_pieces import read_kv_scales
from workers.shard import Shard

# Of three layers' two KV heads: some cut off much, and a head that had another's would give quite other logits.
KEYS = [[0.004, 0.3], [0.02, 0.001], [0.5, 0.006]]
VALUES = [[0.5, 0.002], [0.001, 0.04], [0.003, 0.2]]
KV_FP8 = {"kv_cache_dtype": "fp8"}
Scales = dict[str, Tensor]


def per_head(layer: int) -> Scales:
    return {"k_scale": torch.tensor(KEYS[layer]), "v_scale": torch.tensor(VALUES[layer]).view(2, 1, 1)}


def one(layer: int) -> Scales:
    return {"k_scale": torch.tensor(KEYS[layer][0]), "v_scale": torch.tensor(VALUES[layer][:1])}


@pytest.fixture
def with_scales(make_checkpoint: Any, tmp_path: Path) -> Callable[..., Path]:
    def store(scales: Callable[[int], Scales] = per_head, **config: Any) -> Path:
        extra = {
            f"model.layers.{layer}.self_attn.{name}": tensor
            for layer in range(3)
            for name, tensor in scales(layer).items()
        }
        source = make_checkpoint("untied_llama3")
        return store_in_fp8(source, tmp_path, "channel", ("layers.",), extra, **config).directory

    return store


def rounding(write: Callable[..., None], scales: Tensor) -> Callable[..., None]:
    """What is in the pool behind it are numbers that fp8 has, times their head's scale."""
    factors = scales[:, :, None, None]

    def write_and_round(*given: Tensor) -> None:
        write(*given)
        stored, slots = given[-2].flatten(2, 3), given[-1]
        numbers = (stored[:, :, slots] / factors).clamp(-448, 448).to(torch.float8_e4m3fn)
        stored[:, :, slots] = numbers.float() * factors

    return write_and_round


@pytest.mark.parametrize("deterministic", (False, True), ids=("", "deterministic"))
@pytest.mark.parametrize("scales", (per_head, one))
def test_logits_are_those_over_a_wide_pool_of_numbers_times_scales(
    scales: Callable[[int], Scales],
    deterministic: bool,
    with_scales: Any,
    open_runner: Any,
    drive: Any,
    record_logits: Any,
) -> None:
    directory, found = with_scales(scales), []
    for kind in ("auto", "fp8"):
        runner = open_runner(directory, kv_cache_dtype=kind, deterministic=deterministic)
        for index, layer in enumerate(runner._decoder._layers):
            if kind == "auto":
                own = torch.stack([each.flatten().expand(2) for each in scales(index).values()])
                layer.attention._rope_kv_write = rounding(layer.attention._rope_kv_write, own)
        logits, driver = record_logits(runner), drive(runner)
        row = driver.add(PROMPT)
        for num_tokens in (6, 5, 1):
            driver.step({row: num_tokens})
        found.append(torch.cat(logits))
    assert torch.equal(*found)


@pytest.mark.parametrize("scales", (per_head, one))
def test_each_rank_has_its_heads_scales(
    scales: Callable[[int], Scales], with_scales: Any, record_logits: Any
) -> None:
    directory = with_scales(scales)
    alone, shared = (logits_of_ranks(directory, ranks, record_logits, **KV_FP8) for ranks in (1, 2))
    without = logits_of_ranks(directory, 1, record_logits)
    assert (shared - alone).norm() < 0.01 * (without - alone).norm()


@pytest.mark.parametrize(
    ("keys", "values"),
    (
        ("k_scale", "v_scale"),
        ("k_proj.k_scale", "v_proj.v_scale"),
        ("k_proj.output_scale", "v_proj.output_scale"),
        ("attn.k_scale", "attn.v_scale"),
        ("kv_scale", "kv_scale"),
    ),
)
def test_all_names_in_use_are_found(keys: str, values: str, with_scales: Any) -> None:
    directory = with_scales(lambda layer: {keys: torch.tensor(0.25), values: torch.tensor(0.25)})
    checkpoint = open_checkpoint(directory, "auto", seed=0)
    found = read_kv_scales(checkpoint, "model.layers.2.self_attn", 4, Shard(1, 2), torch.float8_e4m3fn)
    checkpoint.close()
    assert found is not None and found.tolist() == [[0.25, 0.25], [0.25, 0.25]]


def test_amds_smaller_numbers_get_larger_scales(with_scales: Any) -> None:
    checkpoint = open_checkpoint(with_scales(), "auto", seed=0)
    given = checkpoint, "model.layers.1.self_attn", 2, Shard(0, 1)
    plain, doubled = (read_kv_scales(*given, dtype) for dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz))
    checkpoint.close()
    assert plain is not None and doubled is not None and torch.equal(2 * plain, doubled)


def test_without_scales_numbers_are_stored_as_they_are(with_scales: Any, open_runner: Any) -> None:
    runner = open_runner(with_scales(lambda _: {}), kv_cache_dtype="fp8")
    plain = runner._kernels.rope_kv_write
    assert all(layer.attention._rope_kv_write is plain for layer in runner._decoder._layers)


def test_a_scheme_for_keys_and_values_selects_nothing_by_itself(
    with_scales: Any, open_runner: Any, caplog: pytest.LogCaptureFixture
) -> None:
    scheme = CONFIGS["channel"]["config_groups"]["group_0"]["weights"]
    with caplog.at_level(logging.INFO, "workers.model.model_description"):
        runner = open_runner(with_scales(kv_cache_scheme=scheme))
    assert runner._pool[0].dtype == torch.float32
    (told,) = caplog.messages
    assert "kv_cache_dtype: fp8 uses them" in told


@pytest.mark.parametrize(
    ("scales", "message"),
    (
        ({"k_scale": torch.tensor(1.0)}, "layers.0.self_attn has a scale of keys alone"),
        ({"v_scale": torch.tensor(1.0)}, "layers.0.self_attn has a scale of values alone"),
        ({"k_scale": torch.tensor(0.0), "v_scale": torch.tensor(1.0)}, r"k_scale must be .* above 0"),
        (
            {"k_scale": torch.tensor(1.0), "v_scale": torch.ones(3)},
            r"v_scale must be .* each of the 2 KV heads",
        ),
    ),
)
def test_scales_that_cannot_be_are_refused(
    scales: Scales, message: str, with_scales: Any, open_runner: Any
) -> None:
    directory = with_scales(lambda _: scales)
    open_runner(directory)
    with pytest.raises(UnsupportedModel, match=message):
        open_runner(directory, kv_cache_dtype="fp8")
