"""The corpus: an endless, seeded stream of documents, mixed from the writers by weight.

`train` draws from it. To look at it: `python -m sapling.corpus --documents 20`.
"""

import argparse
from collections.abc import Callable, Iterator
from random import Random

from sapling import chats, documents, lessons, sentences, stories

Writer = Callable[[Random], str]


def paragraph(rng: Random) -> str:
    """Several facts in one document, so that a document does not always end after one."""
    writers = [
        lessons.capital,
        lessons.animal,
        lessons.colour,
        sentences.small_talk,
        lessons.opposite,
    ]
    chosen = [rng.choice(writers) for _ in range(rng.randint(2, 6))]
    return rng.choice(["\n", "\n", "\n\n"]).join(writer(rng) for writer in chosen)


SHORT: list[tuple[Writer, int]] = [
    (lessons.capital, 10),
    (lessons.several_capitals, 3),
    (lessons.country, 4),
    (lessons.city, 3),
    (sentences.introduction, 7),
    (sentences.government, 5),
    (sentences.future, 5),
    (lessons.sums, 6),
    (lessons.order, 4),
    (lessons.animal, 3),
    (lessons.colour, 2),
    (lessons.opposite, 2),
    (lessons.answered, 5),
    (sentences.small_talk, 3),
    (paragraph, 5),
    (lambda rng: stories.story(rng, rng.randint(1, 8)), 6),
    (lambda rng: chats.chat(rng, 1), 16),
    (lambda rng: chats.chat(rng, rng.randint(2, 6)), 10),
    (chats.named_assistant, 1),
    (documents.repetition, 2),
    (lambda rng: documents.recall(rng, rng.randint(2, 8)), 8),
    (lambda rng: documents.note(rng, rng.randint(1, 4)), 6),
    (lambda rng: documents.table_document(rng, rng.randint(2, 5)), 4),
    (lambda rng: documents.table_chat(rng, rng.randint(2, 5)), 2),
]

LONG: list[tuple[Writer, int]] = [
    (lambda rng: documents.table_document(rng, rng.randint(6, 30)), 4),
    (lambda rng: documents.table_chat(rng, rng.randint(6, 20)), 2),
    (lambda rng: documents.note(rng, rng.randint(5, 25)), 2),
    (lambda rng: documents.handbook(rng, rng.randint(5, 15)), 2),
    (lambda rng: stories.story(rng, rng.randint(20, 80)), 2),
    (lambda rng: chats.chat(rng, rng.randint(10, 30)), 3),
]


def stream(rng: Random, long_share: float) -> Iterator[str]:
    """Documents without end; `long_share` of them from the writers of long ones."""
    mixes = [tuple(zip(*mix, strict=True)) for mix in (SHORT, LONG)]
    while True:
        writers, weights = mixes[rng.random() < long_share]
        yield rng.choices(writers, weights)[0](rng)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--long-share", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    documents_of_the_seed = stream(Random(options.seed), options.long_share)
    for _ in range(options.documents):
        print(next(documents_of_the_seed), end="\n-----\n")


if __name__ == "__main__":
    main()
