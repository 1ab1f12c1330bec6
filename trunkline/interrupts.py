"""Ctrl-C between two steps and never inside one: a half-run step would leave blocks cached that hold nothing.

Used by `llm.py`. A second Ctrl-C does not wait for the step's end; the engine is then of no further use.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """A KeyboardInterrupt that comes inside is raised at the end.

    Does nothing outside the main thread, which alone is interrupted, and where Ctrl-C means something else already.
    """
    on_main_thread = threading.current_thread() is threading.main_thread()
    if not on_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            raise KeyboardInterrupt
        came = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt
