"""`--detach` with a Ray of one's own: a child in a session of its own outlives the command and owns that Ray.

It gets the configuration through its stdin, since keys must not stand in argv or the environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from controller.config import DeploymentConfig
from controller.joining import prepare_to_join
from protocol.errors import InvalidRequest

CHECKOUT = Path(__file__).resolve().parent.parent


def serve(config: DeploymentConfig, address: str | None = None, *, detach: bool = False) -> int:
    """In the foreground, or with `detach` until the deployment has been launched. The exit status."""
    for model in config.models:
        if model.replicas == 0 and model.autoscaling is None:
            raise InvalidRequest(
                "replicas must be at least 1 where they do not scale by themselves", param="replicas"
            )
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        prepare_to_join(address)
    elif detach:
        return _in_the_background(config)
    from controller import foreground

    return foreground.serve(config, address, detach=detach, launched=print if detach else _say_nothing)


def _in_the_background(config: DeploymentConfig) -> int:
    log = Path(tempfile.gettempdir()) / f"trunkline-serve-{os.getuid()}-{time.strftime('%Y%m%d-%H%M%S')}.log"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")]),
    }
    with log.open("x") as output:
        log.chmod(0o600)
        child = subprocess.Popen(
            [sys.executable, "-m", "controller.background"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            env=environment,
            start_new_session=True,
            text=True,
        )
    assert child.stdin is not None and child.stdout is not None, "both were asked for"
    with child.stdin as stdin, child.stdout as stdout:
        stdin.write(config.model_dump_json())
        stdin.close()
        launched = stdout.read()  # until the child has launched, or died
    if not launched:
        print(f"error: it did not start; see {log}\n{log.read_text()[-2000:]}", file=sys.stderr)
        return 1
    print(f"{launched.strip()}\nProgress: {log}     End it with: trunkline stop")
    child.returncode = 0  # it is nobody's child from now on
    return 0


def _child() -> int:
    from controller import foreground

    config = DeploymentConfig.model_validate(json.load(sys.stdin))

    def launched(text: str) -> None:
        print(text, flush=True)
        os.dup2(
            sys.stderr.fileno(), sys.stdout.fileno()
        )  # ends the parent's reading; the rest goes to the log

    return foreground.serve(config, launched=launched)


def _say_nothing(text: str) -> None:
    pass


if __name__ == "__main__":
    sys.exit(_child())
