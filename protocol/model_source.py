"""What a model name means: a directory with the model's files, and the digests that both sides compare.

A name is, in this order: `sapling` (the built-in model), an existing directory, or a hub name such as
`facebook/opt-125m`, looked up in the local hub cache first. Called once by whoever starts a deployment.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import ModelNotFound
from protocol.model_files import WeightFormat, find_weights

BUILT_IN = "sapling"
_BUILT_IN_DIRECTORY = Path(__file__).resolve().parent.parent / "sapling"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_SLOW_TOKENIZER_FILES = ("vocab.json", "merges.txt", "vocab.txt", "added_tokens.json", "tokenizer.model")
# Whatever describes the model: small files, at the top of the repository alone.
_DESCRIBING_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
_BELOW_THE_TOP = "*/*"
_HEAD_BYTES = 64 * 1024
# How the context's length is called in config.json, by one family or another.
_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """`name` is what clients ask for, `directory` where the files are."""

    name: str
    directory: Path
    model_digest: str
    tokenizer_digest: str
    template_digest: str
    context_tokens: int | None = None  # as config.json says: a replica may have less, or be told to have more


def resolve_model(name: str, *, served_name: str | None = None, revision: str | None = None) -> ModelSource:
    """Find a model's files. Raises ModelNotFound with what was tried."""
    directory = _directory(name, revision)
    if not (directory / "config.json").is_file():
        raise ModelNotFound(f"{directory} holds no config.json: give a directory in Hugging Face format")
    return ModelSource(
        served_name or name,
        directory,
        _model_digest(directory),
        _tokenizer_digest(directory),
        _template_digest(directory),
        _context_tokens(directory),
    )


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
    from huggingface_hub import constants  # only a hub name pays for the import

    cached = _cached(name, revision)
    if cached is not None and (constants.HF_HUB_OFFLINE or _is_whole(cached)):
        return cached  # whoever opens a part that is not there names it
    if constants.HF_HUB_OFFLINE:
        raise ModelNotFound(
            f"model {name!r} is not in the hub cache, and HF_HUB_OFFLINE=1 forbids fetching it"
        )
    try:
        return _fetch(name, revision)
    except (OSError, ValueError) as error:
        raise ModelNotFound(
            f"model {name!r} is neither a directory, nor whole in the hub cache, nor could it be fetched: {error}"
        ) from error


def _cached(name: str, revision: str | None) -> Path | None:
    """The snapshot's directory, whether or not every file of the repository was ever wanted there."""
    from huggingface_hub import try_to_load_from_cache

    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
    except ValueError:  # no name that the hub could have
        return None
    return Path(config).parent if isinstance(config, str) else None


def _is_whole(directory: Path) -> bool:
    weights = find_weights(directory)
    return weights is not None and not weights.missing and _has_tokenizer(directory)


def _has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in ("tokenizer.json", *_SLOW_TOKENIZER_FILES))


def _fetch(name: str, revision: str | None) -> Path:
    """First what describes the model, then the weights in the one format that will be read."""
    from huggingface_hub import snapshot_download

    def fetch(revision: str | None, patterns: list[str]) -> Path:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=patterns, ignore_patterns=[_BELOW_THE_TOP]
            )
        )

    directory = fetch(revision, list(_DESCRIBING_FILES))
    for weight_format in WeightFormat:
        found = find_weights(directory, (weight_format,))
        wanted = [path.name for path in found.paths] if found is not None else [weight_format.value]
        fetch(directory.name, wanted)  # the snapshot's name is the commit's: it cannot change meanwhile
        if find_weights(directory, (weight_format,)) is not None:
            break
    return directory


def _model_digest(directory: Path) -> str:
    """Of the configuration, and of each weight file's name, size and head (its safetensors header)."""
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    weights = find_weights(directory)
    for file in () if weights is None else weights.paths:
        if not file.is_file():
            continue  # named when it is opened, and never opened for dummy weights
        digest.update(f"{file.name} {file.stat().st_size} ".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_HEAD_BYTES))
    return digest.hexdigest()


def _tokenizer_digest(directory: Path) -> str:
    """Of the files that the tokenizer is read from: slow ones only where there is no tokenizer.json."""
    digest = hashlib.sha256()
    fast = (directory / "tokenizer.json").is_file()
    for name in _TOKENIZER_FILES if fast else (*_TOKENIZER_FILES, *_SLOW_TOKENIZER_FILES):
        file = directory / name
        if file.is_file():
            digest.update(name.encode() + file.read_bytes())
    return digest.hexdigest()


def _template_digest(directory: Path) -> str:
    """Of the chat template, wherever it stands: part of the tokenizer's digest too, but told apart from the rest."""
    file, config = directory / "chat_template.jinja", directory / "tokenizer_config.json"
    digest = hashlib.sha256(file.read_bytes() if file.is_file() else b"")
    with contextlib.suppress(
        OSError, ValueError, AttributeError
    ):  # whoever reads it for its content complains
        entry = json.loads(config.read_bytes()).get("chat_template")
        digest.update(json.dumps(entry, sort_keys=True).encode())
    return digest.hexdigest()


def _context_tokens(directory: Path) -> int | None:
    """None where it cannot be told from afar: the engine, which knows each family, complains of what is wrong."""
    try:
        config = json.loads((directory / "config.json").read_bytes())
        config = {**config, **config.get("text_config", {})}  # a model that also sees or hears
        length = next(config[name] for name in _CONTEXT_NAMES if config.get(name) is not None)
        scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if "yarn" in (scaling.get("rope_type"), scaling.get("type")):
            length = max(length, scaling.get("original_max_position_embeddings", length) * scaling["factor"])
        return max(1, int(length))
    except (ValueError, TypeError, AttributeError, KeyError, StopIteration):
        return None
