"""Text to token ids and back, from a model directory's `tokenizer.json`, and its chat template.

One object per process, shared by the HTTP endpoint and the offline library; safe to call from several threads.
`transformers` is imported only for a directory without `tokenizer.json`, and the log says so.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import tokenizers

from protocol.errors import InvalidRequest, UnsupportedModel
from router.text.chat_template import ChatTemplate, read_chat_template
from router.text.part_encoder import PartEncoder
from router.text.token_bytes import token_bytes

logger = logging.getLogger(__name__)

_REPLACEMENT = "\ufffd"


class Tokenizer:
    """`eos_token_ids` end a sequence, `special_ids` are dropped where `skip_special_tokens` is asked for."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_token: str | None = None,
        eos_token_ids: Sequence[int] = (),
        chat_template: ChatTemplate | None = None,
    ) -> None:
        self._backend = backend
        self._added = {id: token.content for id, token in backend.get_added_tokens_decoder().items()}
        decoders = _decoder_names(backend)
        self._byte_level = "ByteLevel" in decoders
        self._joins_bytes = decoders == ["ByteLevel"]  # a decoded text is its tokens' bytes and nothing else
        self._bytes: dict[
            int, bytes
        ] = {}  # as far as they were asked for: logprobs name the same tokens again
        self._texts: dict[int, str] = {}
        self._independent: dict[int, str | None] = {}
        self.special_ids = frozenset(
            id for id, token in backend.get_added_tokens_decoder().items() if token.special
        )
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.bos_token_id: int | None = None if bos_token is None else backend.token_to_id(bos_token)
        self.eos_token_ids = tuple(eos_token_ids)
        self.chat_template = chat_template
        self.part_encoder = PartEncoder(backend)

    @classmethod
    def from_directory(cls, directory: Path | str) -> Tokenizer:
        """Raises UnsupportedModel when the directory has no usable tokenizer."""
        directory = Path(directory)
        config = _read_json(directory / "tokenizer_config.json")
        backend = _load_backend(directory)
        backend.no_truncation()  # some files carry the limits of their training run
        backend.no_padding()
        return cls(
            backend,
            bos_token=_token_text(config.get("bos_token")),
            eos_token_ids=_eos_token_ids(directory, config, backend),
            chat_template=read_chat_template(directory, config),
        )

    @property
    def eos_token_id(self) -> int | None:
        return self.eos_token_ids[0] if self.eos_token_ids else None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Releases the interpreter's lock: long texts belong on a thread."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        text: str = self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def decode_close(self, token_ids: Sequence[int]) -> str:
        """With special tokens shown, and no space around them but what tokens themselves have.

        Some decoders put a space between any two tokens, others none: they decode the runs between special tokens.
        """
        parts: list[str] = []
        for special, group in groupby(token_ids, self.special_ids.__contains__):
            run = list(group)
            if special:
                parts += map(self.token_text, run)
                continue
            text = self.decode(run, skip_special_tokens=False)
            dropped = bool(parts) and self.token_bytes(run[0]).startswith(b" ") and not text.startswith(" ")
            parts.append(f" {text}" if dropped else text)  # a decoder may take a run for the text's beginning
        return "".join(parts)

    def token_bytes(self, token_id: int) -> bytes:
        """Exactly what one token stands for; empty for an id that the vocabulary does not have."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._spelled(token_id)
        return known

    def token_text(self, token_id: int) -> str:
        """One token for human eyes; half a character shows as a replacement character."""
        known = self._texts.get(token_id)
        if known is None:
            known = self._texts[token_id] = self.token_bytes(token_id).decode(errors="replace")
        return known

    def independent_text(self, token_id: int) -> str | None:
        """What a token adds to any text that ends in a whole character; None where that takes its neighbours to say."""
        if token_id not in self._independent:
            self._independent[token_id] = self._independent_text(token_id)
        return self._independent[token_id]

    def _independent_text(self, token_id: int) -> str | None:
        if not self._joins_bytes or token_id in self._added:
            return None
        text = self.token_text(token_id)
        return None if not text or _REPLACEMENT in text else text

    def _spelled(self, token_id: int) -> bytes:
        added = self._added.get(token_id)
        if added is not None:
            return added.encode()
        piece: str | None = self._backend.id_to_token(token_id)
        return b"" if piece is None else token_bytes(piece, self._byte_level)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text, to be encoded with `add_special_tokens=False`. Raises InvalidRequest."""
        if self.chat_template is None:
            raise InvalidRequest(
                "this model has no chat template, so it cannot chat: use completions instead",
                param="messages",
            )
        return self.chat_template.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables or {},
        )


def _load_backend(directory: Path) -> tokenizers.Tokenizer:
    file = directory / "tokenizer.json"
    if not file.is_file():
        return _convert_with_transformers(directory)
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise UnsupportedModel(f"{file} is not a readable tokenizer: {error}") from error


def _convert_with_transformers(directory: Path) -> tokenizers.Tokenizer:
    logger.warning(
        "%s has no tokenizer.json: converting its tokenizer with transformers, which takes seconds and brings "
        "torch into this process. Save a tokenizer.json beside the weights to avoid it.",
        directory,
    )
    import transformers  # the one place outside tests, and only here

    try:
        loaded = transformers.AutoTokenizer.from_pretrained(str(directory))
    except (OSError, ValueError, ImportError) as error:
        raise UnsupportedModel(f"{directory} has no tokenizer that could be loaded: {error}") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise UnsupportedModel(f"the tokenizer of {directory} cannot be converted to tokenizer.json")
    if not backend.get_vocab_size(with_added_tokens=False):  # which is what no files at all come to
        raise UnsupportedModel(
            f"{directory} holds no tokenizer: fetch its tokenizer.json, or vocab and merges"
        )
    return backend


def _decoder_names(backend: tokenizers.Tokenizer) -> list[str]:
    decoder = {} if backend.decoder is None else json.loads(backend.decoder.__getstate__())
    return [part["type"] for part in decoder.get("decoders", [decoder] if decoder else [])]


def _eos_token_ids(directory: Path, config: Mapping[str, Any], backend: tokenizers.Tokenizer) -> list[int]:
    """As the engine reads them: generation_config.json, else config.json, else the tokenizer's own."""
    for name in ("generation_config.json", "config.json"):
        found = _read_json(directory / name).get("eos_token_id")
        if found is not None:
            return [found] if isinstance(found, int) else list(found)
    text = _token_text(config.get("eos_token"))
    token_id = None if text is None else backend.token_to_id(text)
    return [] if token_id is None else [token_id]


def _token_text(entry: Any) -> str | None:
    """Configurations write a token as a string or as an object with `content`."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnsupportedModel(f"{file} is not valid JSON: {error}") from error
    return loaded if isinstance(loaded, dict) else {}
