"""What people read while a deployment starts, runs and stops: a bar on a terminal, else one line per change.

Fed by `foreground.py` with statuses; prints to stderr what passes, to stdout what is worth keeping.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from controller.config import DeploymentConfig
from controller.status import DeploymentStatus
from protocol.membership import ReplicaInfo, ReplicaState


class Progress:
    """`show` every status, `close` before anything else is printed; closing twice does nothing."""

    def __init__(self, num_replicas: int, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._said: dict[str, str] = {}
        self._bar: tqdm[Any] | None = None
        if self._stream.isatty():
            self._bar = tqdm(total=num_replicas, desc="Starting replicas", file=self._stream, leave=False)

    def show(self, status: DeploymentStatus) -> None:
        if self._bar is not None:
            self._bar.n = status.num_ready
            waiting = [
                each for each in status.replicas if each.state is not ReplicaState.READY and each.detail
            ]
            self._bar.set_postfix_str(_first_line(waiting[0].detail) if waiting else "")
        for unit in (*status.replicas, *status.routers):
            self._tell_change(unit)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _tell_change(self, unit: ReplicaInfo) -> None:
        """On a terminal the bar says the rest."""
        line = _line(unit)
        if self._said.get(unit.replica_id) == line:
            return
        self._said[unit.replica_id] = line
        if self._bar is None:
            say(line, self._stream)
        elif unit.state is ReplicaState.FAILED:
            self._bar.write(line, file=self._stream)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print, to stderr unless told otherwise. A terminal that has gone must not keep a deployment from its stop."""
    with contextlib.suppress(OSError):
        print(text, file=stream or sys.stderr, flush=True)


def _line(unit: ReplicaInfo) -> str:
    """Of a failure all that is known, of anything else what it is doing."""
    detail = unit.detail if unit.state is ReplicaState.FAILED else _first_line(unit.detail)
    return f"{unit.replica_id}: {unit.state.value}{': ' if detail else ''}{detail}"


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def ready_text(config: DeploymentConfig, status: DeploymentStatus, logs: Path | None, taken_s: float) -> str:
    """The URL, a line to paste, and where the logs are."""
    replicas = f"{status.num_ready} {'replica' if status.num_ready == 1 else 'replicas'}"
    names, url = config.names, status.urls[0]
    body = json.dumps(
        {"model": names[0], "prompt": "The capital of France is", "max_tokens": 16, "temperature": 0}
    )
    key = "-H 'Authorization: Bearer YOUR-API-KEY' " if config.api_keys else ""
    lines = [
        f"Trunkline serves {', '.join(names)} at {' '.join(status.urls)} ({replicas}, {taken_s:.1f} s to ready)",
        "",
        f"  curl {url}/v1/completions {key}-H 'Content-Type: application/json' -d '{body}'",
        "",
    ]
    if logs is not None:
        lines.append(f"Logs: {logs}")
    return "\n".join(lines)
