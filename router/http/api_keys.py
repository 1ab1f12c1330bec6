"""API keys and what comes with each: the tenant that its requests are counted for, its weight, its priority class.

An entry of `--api-key` or a line of `--api-key-file` is a key, and behind it if wanted `weight=2` or `priority=-1`.
Parsed by `api_config.py`, looked up by `auth.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from protocol.errors import InvalidRequest

MOST_PRIORITY = 2**31
MOST_WEIGHT = 1000.0


@dataclass(frozen=True, slots=True)
class ApiKey:
    secret: str = field(repr=False)
    weight: float = 1.0  # its share of a replica that is fought for, against others' of 1
    priority: int = 0  # the class of its requests; lower is earlier

    @classmethod
    def parse(cls, entry: str) -> ApiKey:
        """Raises InvalidRequest with a sentence that does not show the key."""
        secret, *options = entry.split() or [""]
        if not secret or not secret.isascii():
            raise InvalidRequest("an API key must be a non-empty ASCII string", param="api_key")
        weight, priority = 1.0, 0
        for option in options:
            name, _, value = option.partition("=")
            if name == "weight":
                weight = _weight(value)
            elif name == "priority":
                priority = _priority(value)
            else:
                raise InvalidRequest(
                    "behind an API key only weight=NUMBER and priority=INTEGER may stand", param="api_key"
                )
        return cls(secret, weight, priority)


def parse_keys(entries: Sequence[str]) -> list[ApiKey]:
    """Of one that is given twice the last entry counts. Raises InvalidRequest."""
    return list({key.secret: key for key in map(ApiKey.parse, entries)}.values())


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose a request is. Without API keys everybody is one tenant and may ask for any class."""

    tenant_id: bytes = b""
    weight: float = 1.0
    earliest: int | None = None  # the best class that its requests may have

    def priority(self, asked: int | None) -> int:
        """Its key's class, or a later one if that is asked for: nobody gets before others by asking."""
        if self.earliest is None:
            return asked or 0
        return self.earliest if asked is None else max(asked, self.earliest)


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 1 / MOST_WEIGHT <= weight <= MOST_WEIGHT:
        raise InvalidRequest(
            f"the weight of an API key must be a number from {1 / MOST_WEIGHT:g} to {MOST_WEIGHT:g}, not {text!r}",
            param="api_key",
        )
    return weight


def _priority(text: str) -> int:
    try:
        priority = int(text)
    except ValueError:
        priority = MOST_PRIORITY
    if not -MOST_PRIORITY <= priority < MOST_PRIORITY:
        raise InvalidRequest(
            f"the priority of an API key must be an integer of 32 bits, not {text!r}", param="api_key"
        )
    return priority
