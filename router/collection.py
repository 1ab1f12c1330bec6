"""How often Python's cycle collector looks through a router's process. Called by whoever owns the whole process.

Imports and compiled schemas are 70,000 objects that live as long as the process: looking through them stops every
stream for 42 ms. Requests free what they use without the collector, so it is called once in many of them; left as it
is, it took a tenth of a busy router's time.
"""

from __future__ import annotations

import gc

YOUNG_OBJECTS = (
    10_000  # that must have come and stayed before the collector looks at them; Python's own is 700
)


def settle() -> None:
    """Call when everything is imported and built: it is never looked through again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
