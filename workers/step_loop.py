"""The thread that owns the engine: it takes commands from an inbox and steps while there is work.

Used by `server.py`. Everything that touches the engine runs here, so the engine needs no lock; a command is a
function of the engine, run between two steps. Waits on a condition, never polls. A second thread looks, now and then,
whether the first is stuck in a step: a lost peer or a device that has stopped answering is a death, too.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable

from workers.engine import Engine, StepReport

Command = Callable[[Engine], None]
LOOKS_A_TIMEOUT = 8  # how often a hang is looked for within the time that makes one


class StepLoop:
    """`deliver` is called on the step thread after each step, `on_death` when the engine has failed or hangs."""

    def __init__(
        self,
        engine: Engine,
        deliver: Callable[[StepReport], None],
        on_death: Callable[[str], None],
        hang_timeout_s: float | None = None,
    ) -> None:
        self._engine = engine
        self._deliver = deliver
        self._on_death = on_death
        self._inbox: deque[Command] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._step_began_s: float | None = None  # None: no step runs
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-steps", daemon=True)
        self._watch: threading.Thread | None = None
        if hang_timeout_s is not None:
            self._watch = threading.Thread(
                target=self._look_for_a_hang, args=(hang_timeout_s,), name="hang-watch", daemon=True
            )

    @property
    def stopping(self) -> bool:
        """No step begins any more."""
        return self._stopping

    def start(self) -> None:
        self._thread.start()
        if self._watch is not None:
            self._watch.start()

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
                self._deliver(self._step())
        except BaseException:  # the engine's state is unknown now: report it and end, never go on
            self._on_death(traceback.format_exc())
        finally:
            self._ended.set()

    def _step(self) -> StepReport:
        if not self._engine.has_work:
            return self._engine.idle_report()
        self._step_began_s = time.monotonic()
        report = self._engine.step()
        self._step_began_s = None
        return report

    def _look_for_a_hang(self, timeout_s: float) -> None:
        while not self._ended.wait(timeout_s / LOOKS_A_TIMEOUT):
            began_s = self._step_began_s
            if began_s is not None and time.monotonic() - began_s > timeout_s:
                frame = sys._current_frames().get(self._thread.ident or 0)
                stack = "".join(traceback.format_stack(frame))
                self._on_death(
                    f"a step has taken more than {timeout_s:g} s and has not ended; it is at\n{stack}"
                )
                return

    def _next_commands(self) -> list[Command] | None:
        """All that is in the inbox, waiting while there is neither command nor work; None when stopping."""
        with self._wake:
            self._wake.wait_for(lambda: self._inbox or self._stopping or self._engine.has_work)
            if self._stopping:
                return None
            commands = list(self._inbox)
            self._inbox.clear()
            return commands
