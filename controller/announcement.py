"""Where this user's own Rays are on this machine, so that `trunkline stop` finds them: one small file each, mode 600.

A file is locked for as long as its deployment runs: the lock of a process that was killed is gone, and so is the claim.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def _directory() -> Path:
    return Path(tempfile.gettempdir()) / f"trunkline-{os.getuid()}"


@contextmanager
def announced(address: str) -> Iterator[None]:
    directory = _directory()
    directory.mkdir(mode=0o700, exist_ok=True)
    path = directory / f"{os.getpid()}.address"
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(address)
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                directory.rmdir()  # not while another deployment is in it


def running_addresses() -> list[str]:
    """Of every deployment that is announced; what killed ones have left is removed."""
    found = []
    for path in sorted(_directory().glob("*.address")):
        with contextlib.suppress(FileNotFoundError), path.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(file.read())
            else:
                path.unlink(missing_ok=True)
    return found
