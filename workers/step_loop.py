"""The thread that owns the engine: it takes commands from an inbox and steps while there is work.

Used by `server.py`. Everything that touches the engine runs here, so the engine needs no lock; a command is a
function of the engine, run between two steps. Waits on a condition, never polls.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable

from workers.engine import Engine, StepReport

Command = Callable[[Engine], None]


class StepLoop:
    """`deliver` is called on the step thread after each step, `on_death` once when the engine has failed."""

    def __init__(
        self, engine: Engine, deliver: Callable[[StepReport], None], on_death: Callable[[str], None]
    ) -> None:
        self._engine = engine
        self._deliver = deliver
        self._on_death = on_death
        self._inbox: deque[Command] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine-steps", daemon=True)

    @property
    def stopping(self) -> bool:
        """No step begins any more."""
        return self._stopping

    def start(self) -> None:
        self._thread.start()

    def post(self, command: Command) -> None:
        """Run a command before the next step. Callable from any thread."""
        with self._wake:
            self._inbox.append(command)
            self._wake.notify()

    def stop(self, timeout_s: float) -> bool:
        """End after the step that runs now. Returns whether the thread has ended in time."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while (commands := self._next_commands()) is not None:
                for command in commands:
                    command(self._engine)
                self._deliver(self._engine.step() if self._engine.has_work else self._engine.idle_report())
        except BaseException:  # the engine's state is unknown now: report it and end, never go on
            self._on_death(traceback.format_exc())

    def _next_commands(self) -> list[Command] | None:
        """All that is in the inbox, waiting while there is neither command nor work; None when stopping."""
        with self._wake:
            self._wake.wait_for(lambda: self._inbox or self._stopping or self._engine.has_work)
            if self._stopping:
                return None
            commands = list(self._inbox)
            self._inbox.clear()
            return commands
