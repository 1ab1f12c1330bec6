"""What must hold before anything starts: that `kernels` is ours. Hugging Face publishes a distribution of that name.

Called by the command line and by `LLM`; imports nothing heavy.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from protocol.errors import InvalidRequest

CHECKOUT = Path(__file__).resolve().parent.parent


def check_kernels(checkout: Path = CHECKOUT) -> str | None:
    """Raises InvalidRequest when `kernels` is somebody else's; a sentence of warning when it might become so."""
    spec = importlib.util.find_spec("kernels")
    if spec is None or spec.origin is None or not Path(spec.origin).resolve().is_relative_to(checkout):
        place = None if spec is None else spec.origin
        raise InvalidRequest(
            f"the package 'kernels' comes from {place}, not from Trunkline ({checkout}): "
            "another distribution of that name is installed. `pip uninstall kernels`, or use an environment of its own"
        )
    try:
        version = importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        return None
    return (
        f"another distribution named 'kernels' ({version}) is installed beside Trunkline's package of that name; "
        "libraries that look for it, transformers among them, will find ours. `pip uninstall kernels` to be safe"
    )
