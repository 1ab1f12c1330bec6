"""Turns the stream of documents into batches of equal token windows, short ones mostly, some of full length.

`train` draws one batch a step. Every window starts where a document starts, documents follow each other in
it, and the last one is cut off.
"""

from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from sapling.corpus import stream
from sapling.documents import BREAK
from sapling.tokenizer import END_OF_TEXT, token_id

STRAY_SPACE_SHARE = (
    0.2  # of the documents have one space as a token of its own, as prompts that end in one do
)


class Window(NamedTuple):
    """What one step is made of: so many windows of so many tokens, so many documents by the writers of long ones."""

    num_windows: int
    num_tokens: int
    long_share: float = 0.0


# One step each, in turn. In short windows attention finds out soon what to look at; the full length comes last.
FIRST = [Window(16, 128)]
MIDDLE = [Window(16, 256), Window(8, 512), Window(16, 256), Window(4, 1024, 0.2)]
LAST = [
    *[Window(16, 256), Window(8, 512), Window(4, 1024, 0.15), Window(8, 512, 0.05), Window(16, 256)],
    *[Window(2, 2048, 0.6), Window(8, 512), Window(4, 1024, 0.4), Window(16, 256), Window(1, 4096, 0.9)],
]
STAGES = [(0.12, FIRST), (0.4, MIDDLE), (1.0, LAST)]  # up to this share of all tokens


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
        return torch.tensor([self.fill(window) for _ in range(window.num_windows)])

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
