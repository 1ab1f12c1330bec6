"""One sequence's tokens to text, as they come: whole characters only, and no part of a stop string.

Called by the HTTP endpoint and by the offline library, one stream a sequence. The text depends on the tokens
alone, not on how they were grouped into `push` calls, so a streamed text equals the same one given whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from protocol.sampling import SamplingParams
from router.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_CONTEXT_TOKENS = 6  # of the prompt: enough to see whether a space belongs before the first token
_MAX_HELD_TOKENS = 8  # an unfinished character has at most 3; more than this is no text at all
_UNFINISHED_TOKENS = 3


class TextStream:
    """push… then finish. After `stopped_by` is set, further tokens change nothing."""

    def __init__(
        self, tokenizer: Tokenizer, sampling: SamplingParams, prompt_token_ids: Sequence[int]
    ) -> None:
        self._include_stop = sampling.include_stop_str_in_output
        self._end_ids = frozenset(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            self._end_ids |= frozenset(tokenizer.eos_token_ids)
        self._min_tokens = sampling.min_tokens
        self._characters = _Characters(tokenizer, sampling, prompt_token_ids)
        self._stops = _StopStrings(sampling.stop, sampling.include_stop_str_in_output)
        self._emitted: list[str] = []
        self.num_tokens = 0
        self.num_characters = 0  # decoded so far, held back or not: where the next token's text begins

    @property
    def text(self) -> str:
        """All that was emitted so far."""
        return "".join(self._emitted)

    @property
    def stopped_by(self) -> str | None:
        return self._stops.matched

    def push(self, token_ids: Sequence[int]) -> str:
        """Take the next tokens; the text that is now safe to show."""
        parts = []
        for token_id in token_ids:
            if self.stopped_by is not None:
                break
            self.num_tokens += 1
            if token_id in self._end_ids and not self._include_stop:
                continue
            new = self._characters.push(token_id)
            self.num_characters += len(new)
            parts.append(self._stops.push(new, armed=self.num_tokens >= self._min_tokens))
        return self._emit("".join(parts))

    def finish(self) -> str:
        """No more tokens will come: the rest that was held back."""
        if self.stopped_by is not None:
            return ""
        return self._emit(self._stops.push(self._characters.flush(), armed=True) + self._stops.flush())

    def _emit(self, text: str) -> str:
        if text:
            self._emitted.append(text)
        return text


class _Characters:
    """Decodes a short window: `context`, whose text is out already, and `held`, whose text is not, or not all.

    Some decoders treat a text's first token differently (they drop its leading space), hence the context.
    """

    def __init__(self, tokenizer: Tokenizer, sampling: SamplingParams, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._spaces = sampling.spaces_between_special_tokens
        self._invisible = tokenizer.special_ids if sampling.skip_special_tokens else frozenset()
        self._context = self._tail([id for id in prompt[-_CONTEXT_TOKENS:] if id not in self._invisible])
        # A prompt may end inside a character, which the first tokens then complete: that one is ours to show.
        decoded = self._decode(self._context)
        self._context_text = decoded.rstrip(_REPLACEMENT)
        self._context_is_whole = decoded == self._context_text
        self._held: list[int] = []
        self._num_shown = 0  # characters of what is held that are out already

    def push(self, token_id: int) -> str:
        """The text that one more token completes, maybe none."""
        if token_id in self._invisible:
            return ""
        if self._context_is_whole and not self._held:  # no decoding needed for most tokens of most models
            text = self._tokenizer.independent_text(token_id)
            if text is not None:
                return text
        self._held.append(token_id)
        new = self._held_text(len(self._held))[self._num_shown :]
        if new and not new.endswith(_REPLACEMENT):
            return self._advance(len(self._held), new)
        if len(self._held) < _MAX_HELD_TOKENS:
            whole = new.rstrip(_REPLACEMENT)  # a token may end one character and begin the next
            self._num_shown += len(whole)
            return whole
        num_sure = len(self._held) - _UNFINISHED_TOKENS
        sure = self._held_text(num_sure)
        num_ahead = max(0, self._num_shown - len(sure))
        new = self._advance(num_sure, sure[self._num_shown :])
        self._num_shown = num_ahead
        return new

    def flush(self) -> str:
        """Whatever is held, unfinished characters as replacement characters."""
        if not self._held:
            return ""
        return self._advance(len(self._held), self._held_text(len(self._held))[self._num_shown :])

    def _held_text(self, count: int) -> str:
        return self._decode(self._context + self._held[:count])[len(self._context_text) :]

    def _advance(self, count: int, new: str) -> str:
        self._context, self._held = self._held[:count], self._held[count:]
        self._context_text = self._decode(self._context)
        self._context_is_whole = True
        self._num_shown = 0
        return new

    def _tail(self, token_ids: list[int]) -> list[int]:
        """Without the end of a character that began before the tail."""
        while token_ids and self._decode(token_ids).startswith(_REPLACEMENT):
            token_ids = token_ids[1:]
        return token_ids

    def _decode(self, token_ids: list[int]) -> str:
        if not self._spaces and not self._invisible:
            return self._tokenizer.decode_close(token_ids)
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)


class _StopStrings:
    """Passes text through but for a tail that could become a stop string. The first one to be complete ends it."""

    def __init__(self, stops: Sequence[str], include: bool) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._num_held = max(map(len, stops), default=1) - 1
        self._held = ""
        self.matched: str | None = None

    def push(self, new: str, armed: bool) -> str:
        """`armed` is false while the sequence is too short to be stopped."""
        if not self._stops:
            return new
        text = self._held + new
        if armed and new and (end := self._match(text)) is not None:
            self._held = ""
            return text[:end]
        cut = max(0, len(text) - self._num_held)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        text, self._held = self._held, ""
        return text

    def _match(self, text: str) -> int | None:
        """Where the text now ends, if a stop string is completed by what came after the held tail."""
        known = len(self._held)
        found = [
            (start + len(stop), start, stop)
            for stop in self._stops
            if (start := text.find(stop, max(0, known - len(stop) + 1))) >= 0
        ]
        if not found:
            return None
        end, start, self.matched = min(found)
        return end if self._include else start
