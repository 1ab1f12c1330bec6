"""Turns the stream of documents into batches of equal token windows, short ones mostly, some of full length.

`train` draws one batch a step. Every window starts where a document starts, documents follow each other in
it, and the last one is cut off.
"""

from dataclasses import dataclass, field
from random import Random

import torch
from tokenizers import Tokenizer

from sapling.corpus import stream
from sapling.documents import BREAK
from sapling.tokenizer import END_OF_TEXT

STRAY_SPACE_SHARE = (
    0.2  # of the documents have one space as a token of its own, as prompts that end in one do
)


@dataclass(frozen=True, slots=True)
class Window:
    num_tokens: int
    long_share: float  # of its documents come from the writers of long ones


# One step each, in turn. A step has the same number of tokens whatever its windows are.
CYCLE = [
    *[Window(256, 0.0), Window(512, 0.0), Window(512, 0.0), Window(512, 0.05)],
    *[Window(1024, 0.15), Window(512, 0.0), Window(512, 0.05), Window(2048, 0.5)],
    *[Window(512, 0.0), Window(512, 0.0), Window(1024, 0.3), Window(4096, 0.8)],
]


@dataclass(slots=True)
class Batches:
    tokenizer: Tokenizer
    rng: Random
    tokens_per_step: int
    end_of_text: int = field(init=False)

    def __post_init__(self) -> None:
        self.end_of_text = self.tokenizer.token_to_id(END_OF_TEXT)

    def batch(self, step: int) -> torch.Tensor:
        """Token ids, [windows, num_tokens + 1] int64: inputs and, one further, targets."""
        window = CYCLE[step % len(CYCLE)]
        return torch.tensor([self.fill(window) for _ in range(self.tokens_per_step // window.num_tokens)])

    def fill(self, window: Window) -> list[int]:
        documents = stream(self.rng, window.long_share)
        tokens: list[int] = []
        while len(tokens) <= window.num_tokens:
            tokens += [*self.encode(next(documents)), self.end_of_text]
        return tokens[: window.num_tokens + 1]

    def encode(self, text: str) -> list[int]:
        if self.rng.random() < STRAY_SPACE_SHARE:
            spaces = [place for place, character in enumerate(text) if character == " "]
            if spaces:
                place = self.rng.choice(spaces) + 1
                text = text[:place] + BREAK + text[place:]
        pieces = self.tokenizer.encode_batch(text.split(BREAK), add_special_tokens=False)
        return [token for piece in pieces for token in piece.ids]
