"""What must be done before `import ray` in a process that joins a running Ray. Imports no Ray itself.

Ray reads its environment when it is imported, and tries a dead address for a quarter of an hour.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from protocol.errors import InvalidRequest

CONNECT_TIMEOUT_S = 5.0


def prepare_to_join(address: str) -> None:
    """Show the user's token, and see that somebody is there. Raises InvalidRequest."""
    has_token = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if has_token or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon or not port.isdigit():
        return  # `auto`, or another form that Ray understands
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise InvalidRequest(f"there is no Ray at {address}: {error}", param="address") from None
