"""What a model name means."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import ModelNotFound
from protocol.model_source import resolve_model


def model(directory: Path, config: str = "{}", tokenizer: str = "{}") -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(config)
    (directory / "tokenizer.json").write_text(tokenizer)
    (directory / "model.safetensors").write_bytes(b"weights")
    return directory


def test_the_built_in_model_is_found_by_name() -> None:
    assert (resolve_model("sapling").directory / "config.json").is_file()


def test_a_directory_is_a_name(tmp_path: Path) -> None:
    found = resolve_model(str(model(tmp_path / "m")), served_name="mine")
    assert (found.name, found.directory) == ("mine", tmp_path / "m")


def test_the_digests_follow_the_files(tmp_path: Path) -> None:
    one = resolve_model(str(model(tmp_path / "a")))
    same = resolve_model(str(model(tmp_path / "b")))
    other = resolve_model(str(model(tmp_path / "c", tokenizer='{"x": 1}')))
    assert (one.model_digest, one.tokenizer_digest) == (same.model_digest, same.tokenizer_digest)
    assert one.model_digest == other.model_digest and one.tokenizer_digest != other.tokenizer_digest


def test_a_hub_name_is_found_in_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--some--model"
    snapshot = repository / "snapshots" / "0123456789012345678901234567890123456789"
    snapshot.mkdir(parents=True)
    model(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert resolve_model("some/model").directory == snapshot


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "nobody/nothing"])
def test_a_name_that_means_nothing_is_refused_with_a_sentence(name: str) -> None:
    with pytest.raises(ModelNotFound):
        resolve_model(name)


def test_a_directory_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        resolve_model(str(tmp_path))
