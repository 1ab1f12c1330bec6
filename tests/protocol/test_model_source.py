"""What a model name means."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

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


def test_the_template_has_a_digest_of_its_own_wherever_it_stands(tmp_path: Path) -> None:
    directory, digests = model(tmp_path / "m"), []
    for name, content in (
        ("tokenizer_config.json", "{}"),
        ("tokenizer_config.json", '{"chat_template": "one"}'),
        ("tokenizer_config.json", '{"chat_template": "other"}'),
        ("chat_template.jinja", "one"),
    ):
        (directory / name).write_text(content)
        digests.append(resolve_model(str(directory)).template_digest)
    assert len(set(digests)) == 4
    (directory / "tokenizer_config.json").write_text('{"eos_token": "<end>", "chat_template": "other"}')
    assert resolve_model(str(directory)).template_digest == digests[-1]


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


class FakeHub:
    """Repositories as directories. Stands for `snapshot_download`: copies what the patterns let through."""

    def __init__(self, cache: Path, *files: str) -> None:
        self._snapshot = cache / "models--some--model" / "snapshots" / COMMIT
        self._files = files
        self.fetched: list[str] = []

    def snapshot_download(
        self, name: str, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        self._snapshot.mkdir(parents=True, exist_ok=True)
        for file in filter_repo_objects(
            self._files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            self.fetched.append(file)
            (self._snapshot / file).write_text(INDEX if file.endswith(".index.json") else "{}")
        return str(self._snapshot)


COMMIT = "0123456789012345678901234567890123456789"
INDEX = json.dumps({"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}})
DESCRIBING = ("config.json", "tokenizer.json")
NEVER_WANTED = (
    "tf_model.h5",
    "flax_model.msgpack",
    "onnx/model.safetensors",
    "original/config.json",
    "README.md",
)


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeHub]:
    """A hub that holds the given files, and an empty cache."""

    def make(*files: str) -> FakeHub:
        hub = FakeHub(tmp_path, *files)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
        return hub

    return make


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        (("model.safetensors", "pytorch_model.bin"), ("model.safetensors",)),
        (("pytorch_model.bin", "training_args.bin"), ("pytorch_model.bin",)),
        (
            (
                "model.safetensors.index.json",
                "part-1.safetensors",
                "part-2.safetensors",
                "consolidated.safetensors",
            ),
            ("model.safetensors.index.json", "part-1.safetensors", "part-2.safetensors"),
        ),
    ],
    ids=("safetensors", "pickled", "sharded"),
)
def test_only_what_will_be_read_is_fetched(
    weights: tuple[str, ...], wanted: tuple[str, ...], online: Callable[..., FakeHub]
) -> None:
    hub = online(*DESCRIBING, *weights, *NEVER_WANTED)
    assert resolve_model("some/model").directory.name == COMMIT
    assert sorted(hub.fetched) == sorted([*DESCRIBING, *wanted])


def test_what_is_whole_in_the_cache_is_not_fetched_again(online: Callable[..., FakeHub]) -> None:
    hub = online(*DESCRIBING, "pytorch_model.bin", *NEVER_WANTED)
    cache_main(resolve_model("some/model").directory)
    hub.fetched.clear()
    resolve_model("some/model")
    assert hub.fetched == []


def test_a_part_that_the_cache_lacks_is_fetched(online: Callable[..., FakeHub]) -> None:
    hub = online("config.json", "tokenizer.json", "model.safetensors")
    directory = resolve_model("some/model").directory
    cache_main(directory)
    (directory / "model.safetensors").unlink()
    resolve_model("some/model")
    assert (directory / "model.safetensors").is_file()
    assert hub.fetched.count("model.safetensors") == 2


def test_offline_a_part_that_the_cache_lacks_is_left_to_whoever_needs_it(
    online: Callable[..., FakeHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    online("config.json", "tokenizer.json")
    directory = resolve_model("some/model").directory
    cache_main(directory)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert resolve_model("some/model").directory == directory


def cache_main(snapshot: Path) -> None:
    """What the hub's library notes beside a snapshot: which commit `main` is."""
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text(snapshot.name)


def test_the_model_digest_follows_the_weights_that_are_read(tmp_path: Path) -> None:
    directory = model(tmp_path / "m")
    before = resolve_model(str(directory)).model_digest
    (directory / "training_args.bin").write_bytes(b"not weights")
    assert resolve_model(str(directory)).model_digest == before
    (directory / "model.safetensors").write_bytes(b"other weights")
    assert resolve_model(str(directory)).model_digest != before


def test_the_tokenizer_digest_follows_slow_files_only_where_they_are_used(tmp_path: Path) -> None:
    directory = model(tmp_path / "m")
    digests = []
    for fast in (True, False):
        for merges in ("a b", "b c"):
            (directory / "merges.txt").write_text(merges)
            digests.append(resolve_model(str(directory)).tokenizer_digest)
        if fast:
            (directory / "tokenizer.json").unlink()
    assert digests[0] == digests[1] and len(set(digests)) == 3


@pytest.mark.parametrize(
    ("config", "context_tokens"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": None, "max_seq_len": 2048}, 2048),
        ({"text_config": {"max_position_embeddings": 300}}, 300),
        ({"max_position_embeddings": 32768, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 131072),
        ({"max_position_embeddings": 32768, "rope_scaling": {"type": "linear", "factor": 4.0}}, 32768),
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                },
            },
            131072,
        ),
        ({}, None),
        ({"max_position_embeddings": "many"}, None),
        ([], None),
    ],
)
def test_the_context_is_as_long_as_the_configuration_says(
    config: object, context_tokens: int | None, tmp_path: Path
) -> None:
    directory = model(tmp_path / "m", config=json.dumps(config))
    assert resolve_model(str(directory)).context_tokens == context_tokens
