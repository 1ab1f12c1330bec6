"""Turns the stream of documents into batches of equal token windows, short ones mostly, some of full length.

`train` draws one batch a step. Every window starts where a document starts, documents follow each other in
it, and the last one is cut off.
"""

import re
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from sapling.corpus import stream
from sapling.documents import BREAK
from sapling.tokenizer import END_OF_TEXT, SPECIAL_TOKENS, token_id

STRAY_SPACE_SHARE = (
    0.3  # of the documents have one space as a token of its own, as prompts that end in one do
)
SPACE = re.compile(" ")
BEFORE_AN_ANSWER = re.compile(r"(?<= is) |(?<=:) ")


class Window(NamedTuple):
    """What one step is made of: so many windows of so many tokens."""

    num_windows: int
    num_tokens: int
    long_share: float = 0.0  # of the documents come from the writers of long ones
    repeats: bool = False  # no documents: random tokens, and the same again


# One step each, in turn, up to a share of all tokens. The first two stages teach attention to find what came
# before: on random tokens in short windows that takes a hundred steps, on documents five million tokens were few.
STAGES = [
    (0.05, [Window(64, 32, repeats=True)]),
    (0.07, [Window(16, 128, repeats=True)]),
    (0.15, [Window(16, 128)]),
    (0.45, [Window(8, 256), Window(4, 512), Window(16, 128), Window(8, 256), Window(2, 1024, 0.2)]),
    (
        1.0,
        [
            *[Window(16, 256), Window(8, 512), Window(4, 1024, 0.15), Window(8, 512, 0.05), Window(16, 256)],
            *[
                Window(2, 2048, 0.6),
                Window(8, 512),
                Window(4, 1024, 0.4),
                Window(16, 256),
                Window(1, 4096, 0.9),
            ],
        ],
    ),
]


@dataclass(slots=True)
class Batches:
    tokenizer: Tokenizer
    rng: Random
    end_of_text: int = field(init=False)

    def __post_init__(self) -> None:
        self.end_of_text = token_id(self.tokenizer, END_OF_TEXT)

    def batch(self, step: int, progress: float) -> Tensor:
        """Token ids, [windows, num_tokens + 1] int64: inputs and, one further, targets."""
        cycle = next(cycle for until, cycle in STAGES if progress <= until)
        window = cycle[step % len(cycle)]
        fill = self.repeat if window.repeats else self.fill
        return torch.tensor([fill(window) for _ in range(window.num_windows)])

    def fill(self, window: Window) -> list[int]:
        documents = stream(self.rng, window.long_share)
        tokens: list[int] = []
        while len(tokens) <= window.num_tokens:
            tokens += [*self.encode(next(documents)), self.end_of_text]
        return tokens[: window.num_tokens + 1]

    def repeat(self, window: Window) -> list[int]:
        words = range(len(SPECIAL_TOKENS), self.tokenizer.get_vocab_size())
        tokens = self.rng.choices(words, k=window.num_tokens // 2)
        return [*tokens, *tokens, tokens[0]]

    def encode(self, text: str) -> list[int]:
        if self.rng.random() < STRAY_SPACE_SHARE:
            pattern = self.rng.choice([BEFORE_AN_ANSWER, SPACE])
            ends = [found.end() for found in pattern.finditer(text)]
            if ends:
                place = self.rng.choice(ends)
                text = text[:place] + BREAK + text[place:]
        pieces = self.tokenizer.encode_batch(text.split(BREAK), add_special_tokens=False)
        return [token for piece in pieces for token in piece.ids]
