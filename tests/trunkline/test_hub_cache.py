"""`LLM("facebook/opt-125m")` from a hub cache as the hub's library leaves it, with the pickled weights alone."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer

ROOT = Path(__file__).parents[2]
NAME, COMMIT = "facebook/opt-125m", "27dcfa74d334bc871f3234de431e71c6eeba5dd6"
PROMPT = "Hello, my name is"
NUM_TOKENS = 64
TOKENIZER = {
    "tokenizer_class": "GPT2Tokenizer",
    "bos_token": {"content": "</s>", "__type": "AddedToken"},
    "eos_token": {"content": "</s>", "__type": "AddedToken"},
    "unk_token": {"content": "</s>", "__type": "AddedToken"},
    "pad_token": {"content": "<pad>", "__type": "AddedToken"},
    "add_bos_token": True,
}


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of links to blobs that a name and a reference lead to."""
    home = tmp_path_factory.mktemp("hf_home")
    repository = home / "hub" / "models--facebook--opt-125m"
    snapshot = repository / "snapshots" / COMMIT
    for directory in (snapshot, repository / "refs", repository / "blobs"):
        directory.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    files = tmp_path_factory.mktemp("files")
    save_tokenizer(files)
    save_model(files)
    for file in files.iterdir():
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def save_tokenizer(directory: Path) -> None:
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        ["Hello, my name is nobody"] * 9, vocab_size=280, special_tokens=["<s>", "<pad>", "</s>", "<unk>"]
    )
    trained.save_model(str(directory))
    (directory / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))


def save_model(directory: Path) -> None:
    """A small OPT, in half precision and without its head's prefix, as most of the family's checkpoints are."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=288, hidden_size=64, ffn_dim=96, num_hidden_layers=3, num_attention_heads=4, init_std=0.3
    )
    config.architectures = ["OPTForCausalLM"]
    model = OPTForCausalLM(config).half()
    torch.save(model.model.state_dict(), directory / "pytorch_model.bin")
    (directory / "config.json").write_text(json.dumps({**config.to_dict(), "dtype": "float16"}))


def reference(directory: Path) -> tuple[list[int], Any]:
    """transformers' token ids of the prompt, and its model in fp32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompt = AutoTokenizer.from_pretrained(directory)(PROMPT).input_ids
    return prompt, AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def run(home: Path) -> subprocess.CompletedProcess[str]:
    script = str(Path(__file__).with_name("hub_generation.py"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-W", "error", script, NAME, PROMPT, str(NUM_TOKENS)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_opt_125m_runs_from_a_cache_that_holds_pickled_weights_alone(snapshot: Path) -> None:
    assert {file.name for file in snapshot.iterdir()} == {
        "config.json",
        "merges.txt",
        "pytorch_model.bin",
        "tokenizer_config.json",
        "vocab.json",
    }
    done = run(snapshot.parents[3])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    prompt, model = reference(snapshot)
    assert found["prompt"] == prompt
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + found["generated"]])).logits[0]
    assert found["generated"] == logits.argmax(-1)[len(prompt) - 1 : -1].tolist()
    assert len(set(found["generated"])) > NUM_TOKENS // 8, "a model that repeats itself would prove little"


def test_a_name_that_the_cache_lacks_is_refused_where_nothing_may_be_fetched(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode != 0
    assert f"model '{NAME}' is not in the hub cache, and HF_HUB_OFFLINE=1 forbids fetching it" in done.stderr
