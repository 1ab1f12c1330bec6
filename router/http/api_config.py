"""What one HTTP endpoint allows, whatever models it serves. Made at launch, validated once, the same for its life."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from protocol.deployment_secrets import DeploymentSecrets
from protocol.errors import InvalidRequest
from router.http.api_keys import ApiKey, parse_keys


@dataclass(frozen=True, slots=True)
class ApiConfig:
    version: str = "0"
    # As `api_keys.py` reads them; none: whoever reaches the port may ask.
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    secrets: DeploymentSecrets | None = field(default=None, repr=False)  # makes each key's cache salt
    max_body_bytes: int = 16 * 1024 * 1024
    max_sequences: int = 1024  # of one request: prompts times n
    deadline_s: float | None = None  # for a whole request; None: as long as it takes
    created: int = field(default_factory=lambda: int(time.time()))  # shown by /v1/models

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_sequences"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} must be at least 1", param=name)
        if self.api_keys and self.secrets is None:
            raise InvalidRequest("API keys need the deployment's secrets: they make each key's cache salt")
        parse_keys(self.api_keys)

    @property
    def keys(self) -> list[ApiKey]:
        return parse_keys(self.api_keys)
