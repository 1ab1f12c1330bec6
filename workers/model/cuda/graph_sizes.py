"""For which steps graphs are captured: numbers of rows, and lengths of the longest row.

A step takes the next size above its own; the rest is padding. The length decides how many splits of the keys the
attention's grid has, which are launched used or not.
"""

from __future__ import annotations

_MOST_ROWS = 256  # beyond, launching hides behind computing
_SMALLEST_KEYS = 2048
_KEYS_FACTOR = 4


def graph_sizes(max_rows: int) -> tuple[int, ...]:
    """1, 2, 4, 8, 16 ... 256, ascending, as far as `max_rows` needs."""
    sizes = [1, 2, 4, *range(8, 32, 8), *range(32, _MOST_ROWS + 1, 16)]
    enough = next((index for index, size in enumerate(sizes) if size >= max_rows), len(sizes) - 1)
    return tuple(sizes[: enough + 1])


def padded_rows(max_rows: int) -> int:
    """The most rows that a step has, padding included."""
    return max(max_rows, graph_sizes(max_rows)[-1])


def graph_keys(max_keys: int) -> tuple[int, ...]:
    """2048, 8192, 32768 ..., ascending; the last one is `max_keys`."""
    keys, found = _SMALLEST_KEYS, list[int]()
    while keys < max_keys:
        found.append(keys)
        keys *= _KEYS_FACTOR
    return (*found, max_keys)
