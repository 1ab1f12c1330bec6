"""Tokenizers that have no tokenizer.json, as the hub's oldest models come: GPT-2's vocabulary and merges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer

from protocol.errors import UnsupportedModel
from router.text.tokenizer import Tokenizer

TEXTS = ["hello world", " the quick brown fox", "nächste Zeile\n猫", "a</s>b"]
CONFIG = {
    "tokenizer_class": "GPT2Tokenizer",
    "bos_token": {"content": "</s>", "__type": "AddedToken"},
    "eos_token": {"content": "</s>", "__type": "AddedToken"},
    "unk_token": {"content": "</s>", "__type": "AddedToken"},
    "add_bos_token": True,
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OPT's way: vocab.json, merges.txt, and a text begins with the token that ends another."""
    path = tmp_path_factory.mktemp("slow")
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        ["hello world the quick brown fox"] * 9, vocab_size=300, special_tokens=["</s>"]
    )
    trained.save_model(str(path))
    (path / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    (path / "config.json").write_text(json.dumps({"model_type": "opt", "eos_token_id": 0}))
    return path


@pytest.mark.parametrize("text", TEXTS)
def test_a_slow_tokenizer_encodes_as_in_transformers(directory: Path, text: str) -> None:
    from transformers import AutoTokenizer

    ours = Tokenizer.from_directory(directory)
    assert ours.encode(text) == AutoTokenizer.from_pretrained(str(directory))(text).input_ids
    assert ours.decode(ours.encode(text)) == text.replace("</s>", "")


def test_a_slow_tokenizers_beginning_and_end_are_known(directory: Path) -> None:
    ours = Tokenizer.from_directory(directory)
    assert ours.encode("hello")[0] == ours.bos_token_id == ours.eos_token_id == 0
    assert ours.special_ids == {0}


def test_a_conversion_is_said_aloud(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    Tokenizer.from_directory(directory)
    assert f"{directory} has no tokenizer.json" in caplog.text


@pytest.mark.parametrize("missing", (("merges.txt",), ("vocab.json", "merges.txt")))
def test_a_tokenizer_that_is_not_whole_is_refused(
    missing: tuple[str, ...], directory: Path, tmp_path: Path
) -> None:
    for file in directory.iterdir():
        if file.name not in missing:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UnsupportedModel, match=str(tmp_path)):
        Tokenizer.from_directory(tmp_path)
