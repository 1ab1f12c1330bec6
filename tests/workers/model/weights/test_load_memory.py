"""How much memory loading takes: hardly more than the weights, whatever the format and the rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from workers.model.families import llama
from workers.model.hf_config import HfConfig
from workers.model.weights.weight_layout import decoder_layout

ROOT = Path(__file__).parents[4]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 4096,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 5,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
}
NUM_SHARDS = 4


def save_pickled(tensors: dict[str, Tensor], path: Path) -> None:
    torch.save(tensors, path)


def save_legacy(tensors: dict[str, Tensor], path: Path) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def save_sharded(
    save: Callable[[dict[str, Tensor], Path], None], tensors: dict[str, Tensor], path: Path
) -> None:
    names = list(tensors)
    share = -(-len(names) // NUM_SHARDS)
    placed = {name: f"{index // share}-{path.name}" for index, name in enumerate(names)}
    for file in set(placed.values()):
        save({name: tensors[name] for name in names if placed[name] == file}, path.with_name(file))
    path.with_name(f"{path.name}.index.json").write_text(json.dumps({"weight_map": placed}))


@pytest.fixture(
    scope="module", params=("safetensors", "sharded safetensors", "pickled", "sharded pickled", "legacy")
)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A Llama of about 210 MB in fp32, its tensors in one file or in four."""
    kind: str = request.param
    directory = tmp_path_factory.mktemp("big")
    config = HfConfig(CONFIG, "config.json")
    (directory / "config.json").write_text(json.dumps(CONFIG))
    layout = decoder_layout(llama.spec(config), llama.names(config))
    tensors = {piece.name: torch.zeros(piece.shape) for piece in layout.pieces()}
    form = kind.split()[-1]
    save = {"safetensors": save_file, "pickled": save_pickled, "legacy": save_legacy}[form]
    path = directory / ("model.safetensors" if form == "safetensors" else "pytorch_model.bin")
    if kind.startswith("sharded"):
        save_sharded(save, tensors, path)
    else:
        save(tensors, path)
    return kind, directory


@pytest.mark.parametrize(
    ("shard", "dtype"), (((0, 1), "float32"), ((1, 2), "bfloat16")), ids=("alone", "rank 1 of 2")
)
def test_loading_takes_little_more_memory_than_the_weights(
    checkpoint: tuple[str, Path], shard: tuple[int, int], dtype: str
) -> None:
    kind, directory = checkpoint
    found = measure(directory, shard, dtype)
    whole = found["weights"]
    if kind == "legacy":  # read whole: the file's form allows nothing else
        whole = max(whole, (directory / "pytorch_model.bin").stat().st_size)
    assert found["peak"] < 1.15 * whole + found["largest"], found
    assert found["end"] < 1.05 * found["weights"] + found["largest"], found


def test_weights_in_fp8_are_never_wide_all_at_once(tmp_path: Path) -> None:
    """Those of MLPs are in blocks, which are quantised again."""
    said = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": said}))
    config = HfConfig(CONFIG, "config.json")
    tensors = {}
    for piece in decoder_layout(llama.spec(config), llama.names(config)).pieces():
        of_layer = ".layers." in piece.name and len(piece.shape) == 2
        dtype = torch.float8_e4m3fn if of_layer else torch.bfloat16
        tensors[piece.name] = torch.zeros(piece.shape, dtype=dtype)
        if of_layer:
            grid = [size // 128 for size in piece.shape] if ".mlp." in piece.name else [piece.shape[0], 1]
            tensors[f"{piece.name}_scale"] = torch.ones(grid)
    save_file(tensors, tmp_path / "model.safetensors")
    found = measure(tmp_path, (0, 1), "bfloat16")
    assert found["peak"] < 1.15 * found["weights"] + found["largest"], found
    assert found["end"] < 1.05 * found["weights"] + found["largest"], found


def measure(directory: Path, shard: tuple[int, int], dtype: str) -> dict[str, int]:
    script = str(Path(__file__).with_name("load_memory.py"))
    command = [sys.executable, script, str(directory), *map(str, shard), dtype]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found
