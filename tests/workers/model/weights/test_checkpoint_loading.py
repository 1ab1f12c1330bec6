"""What is read from a checkpoint, and what is said of one that does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from protocol.errors import InvalidRequest, ModelNotFound, UnsupportedModel

PROMPT = [1, 17, 42, 5]


@pytest.fixture
def copied(tmp_path: Path, make_checkpoint: Any) -> Path:
    """A checkpoint of the test's own, to be changed."""
    return Path(shutil.copytree(make_checkpoint(), tmp_path / "model"))


def rewrite(directory: Path, **changed: torch.Tensor | None) -> None:
    """Replace, add or (None) remove tensors; dots are written as two underscores."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in changed.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, file)


def greedy(runner: Any, drive: Any) -> list[int]:
    driver = drive(runner)
    row = driver.add(PROMPT)
    driver.generate([row], 8)
    generated: list[int] = driver.sequences[row].generated
    return generated


def test_a_sharded_checkpoint_loads_like_a_single_file(copied: Path, open_runner: Any, drive: Any) -> None:
    expected = greedy(open_runner(copied), drive)
    tensors = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, copied / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (copied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert greedy(open_runner(copied), drive) == expected


def test_a_missing_tensor_is_named(copied: Path, open_runner: Any) -> None:
    rewrite(copied, model__layers__1__mlp__up_proj__weight=None)
    with pytest.raises(UnsupportedModel, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        open_runner(copied)


def test_a_misshapen_tensor_is_named_with_both_shapes(copied: Path, open_runner: Any) -> None:
    rewrite(copied, model__norm__weight=torch.zeros(47))
    with pytest.raises(
        UnsupportedModel, match=r"model\.norm\.weight has shape \[47\] where \[48\] is expected"
    ):
        open_runner(copied)


def test_a_tensor_too_many_is_named(copied: Path, open_runner: Any) -> None:
    rewrite(copied, model__layers__0__self_attn__q_norm__weight=torch.zeros(8))
    with pytest.raises(UnsupportedModel, match=r"q_norm\.weight is not part of this architecture"):
        open_runner(copied)


def test_old_rotary_buffers_are_ignored(copied: Path, open_runner: Any) -> None:
    rewrite(copied, model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(4))
    assert open_runner(copied).facts.vocab_size == 99


def test_a_truncated_file_is_named(copied: Path, open_runner: Any) -> None:
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UnsupportedModel, match=r"model\.safetensors is not a readable safetensors file"):
        open_runner(copied)


def test_a_directory_without_weights_is_refused(copied: Path, open_runner: Any) -> None:
    (copied / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match=r"holds no weights"):
        open_runner(copied)


def pickled(directory: Path, target: Path, *, body_alone: bool = False, **more: torch.Tensor) -> Path:
    """The same model as hubs hold it: `pytorch_model.bin` with every shared tensor, or the body without its head."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory)
    target.mkdir()
    shutil.copy(directory / "config.json", target)
    tensors = (model.base_model if body_alone else model).state_dict()
    torch.save({**tensors, **more}, target / "pytorch_model.bin")
    return target


@pytest.mark.parametrize("body_alone", (False, True), ids=("with head", "body alone"))
@pytest.mark.parametrize("variant", ("tied", "opt", "opt_norm_after_projected", "gpt2"))
def test_a_pickled_checkpoint_says_what_safetensors_say(
    variant: str, body_alone: bool, make_checkpoint: Any, open_runner: Any, drive: Any, tmp_path: Path
) -> None:
    directory = make_checkpoint(variant)
    other = pickled(directory, tmp_path / "pickled", body_alone=body_alone)
    assert greedy(open_runner(other), drive) == greedy(open_runner(directory), drive)


def test_the_masks_that_the_hubs_gpt2_carries_are_ignored(
    make_checkpoint: Any, open_runner: Any, drive: Any, tmp_path: Path
) -> None:
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 512, 512) for layer in range(3)}
    other = pickled(make_checkpoint("gpt2"), tmp_path / "gpt2", body_alone=True, **masks)
    assert greedy(open_runner(other), drive) == greedy(open_runner("gpt2"), drive)


def test_progress_counts_every_tensor_once(open_runner: Any, make_checkpoint: Any) -> None:
    from workers.model.cpu_runner import CpuRunner
    from workers.model.runner_config import RunnerConfig
    from workers.tensor_parallel import TensorParallelGroup

    seen: list[tuple[int, int]] = []
    config = RunnerConfig(make_checkpoint(), dtype="float32")
    CpuRunner(config, TensorParallelGroup(), lambda done, total: seen.append((done, total))).close()
    assert seen == [(done, 30) for done in range(1, 31)]


def test_dummy_weights_need_no_file_and_depend_on_the_seed(
    copied: Path, open_runner: Any, drive: Any
) -> None:
    (copied / "model.safetensors").unlink()
    first, again, other = (
        greedy(open_runner(copied, load_format="dummy", seed=seed), drive) for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
def test_half_precision_runs(dtype: str, open_runner: Any, drive: Any) -> None:
    assert len(greedy(open_runner(dtype=dtype), drive)) == 8


def test_the_context_shrinks_to_what_the_memory_holds(open_runner: Any) -> None:
    runner = open_runner(kv_cache_memory_bytes=100 * 2 * 3 * 4 * 16 * 4)  # 100 blocks of 4 tokens
    assert (runner.facts.num_blocks, runner.facts.max_model_len) == (100, 396)


def test_a_context_that_was_asked_for_does_not_shrink(open_runner: Any) -> None:
    with pytest.raises(InvalidRequest, match="raise kv_cache_memory_bytes"):
        open_runner(kv_cache_memory_bytes=100 * 2 * 3 * 4 * 16 * 4, max_model_len=512)


def test_a_context_over_the_models_is_refused(open_runner: Any) -> None:
    with pytest.raises(InvalidRequest, match="513 is over the model's 512 positions"):
        open_runner(max_model_len=513)


def test_no_more_blocks_are_kept_than_rows_can_use(open_runner: Any) -> None:
    assert open_runner(max_num_seqs=2, max_model_len=40).facts.num_blocks == 2 * 10 + 1
