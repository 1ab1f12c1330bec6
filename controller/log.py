"""The controller's logger; where it writes is decided by whoever starts the process."""

from __future__ import annotations

import logging

log = logging.getLogger("controller")
