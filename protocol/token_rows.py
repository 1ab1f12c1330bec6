"""Turns a step's columns of plain tokens back into outputs. Used by whoever receives steps: a router, the offline LLM.

    outputs   SequenceOutput(request 7, index 0, token 31, row 4)      announces row 4
    columns   rows  4  9  2                                            each row's next token; all else is as announced
              tokens 88 12 5

Building an object and encoding its fields for each token would cost a busy replica more than deciding its steps does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from protocol.errors import ProtocolError
from protocol.messages import SequenceOutput


class TokenRows:
    """What each row stands for now. One per stream of steps: it starts empty, as the stream does."""

    def __init__(self) -> None:
        self._announced: dict[int, SequenceOutput] = {}

    def expand(
        self, outputs: Iterable[SequenceOutput], rows: Iterable[int], tokens: Iterable[int]
    ) -> Iterator[SequenceOutput]:
        """Every output of one step. Raises ProtocolError for a row that nobody announced."""
        for output in outputs:
            if output.row is not None:
                self._announced[output.row] = output
            yield output
        for row, token in zip(rows, tokens, strict=True):
            sequence = self._announced.get(row)
            if sequence is None:
                raise ProtocolError(f"a step brings a token of row {row}, which no output has announced")
            yield SequenceOutput(sequence.request_id, sequence.index, (token,), sequence.num_cached_tokens)
