"""What a model name means: a directory with the model's files, and the digests that both sides compare.

A name is, in this order: `sapling` (the built-in model), an existing directory, or a hub name such as
`facebook/opt-125m`, looked up in the local hub cache first. Called once by whoever starts a deployment.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import ModelNotFound

BUILT_IN = "sapling"
_BUILT_IN_DIRECTORY = Path(__file__).resolve().parent.parent / "sapling"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_WANTED_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
_HEAD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class ModelSource:
    """`name` is what clients ask for, `directory` where the files are."""

    name: str
    directory: Path
    model_digest: str
    tokenizer_digest: str


def resolve_model(name: str, *, served_name: str | None = None, revision: str | None = None) -> ModelSource:
    """Find a model's files. Raises ModelNotFound with what was tried."""
    directory = _directory(name, revision)
    if not (directory / "config.json").is_file():
        raise ModelNotFound(f"{directory} holds no config.json: give a directory in Hugging Face format")
    return ModelSource(served_name or name, directory, _model_digest(directory), _tokenizer_digest(directory))


def _directory(name: str, revision: str | None) -> Path:
    if name == BUILT_IN:
        return _BUILT_IN_DIRECTORY
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise ModelNotFound(f"there is no directory {name!r}")
    return _from_hub(name, revision)


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download  # only a hub name pays for the import

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        pass  # not in the cache, or not wholly
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        raise ModelNotFound(
            f"model {name!r} is not in the hub cache, and HF_HUB_OFFLINE=1 forbids fetching it"
        )
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_WANTED_FILES)))
    except (OSError, ValueError) as error:
        raise ModelNotFound(
            f"model {name!r} is neither a directory, nor in the hub cache, nor could it be fetched: {error}"
        ) from error


def _model_digest(directory: Path) -> str:
    """Of the configuration, and of each weight file's name, size and head (its safetensors header)."""
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    weights = sorted([*directory.glob("*.safetensors"), *directory.glob("*.bin")])
    for file in weights:
        digest.update(f"{file.name} {file.stat().st_size} ".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_HEAD_BYTES))
    return digest.hexdigest()


def _tokenizer_digest(directory: Path) -> str:
    digest = hashlib.sha256()
    for name in _TOKENIZER_FILES:
        file = directory / name
        if file.is_file():
            digest.update(name.encode() + file.read_bytes())
    return digest.hexdigest()
