"""What every route works with: the models, what the endpoint allows, and who may ask. Made by `api.py`."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from router.http.api_config import ApiConfig
from router.http.api_keys import Tenant
from router.http.auth import Authenticator
from router.http.catalog import Catalog
from router.http.openai_types import GenerationBody
from router.http.serving import Serving


@dataclass(frozen=True, slots=True)
class Endpoint:
    catalog: Catalog
    config: ApiConfig
    authenticator: Authenticator

    def pick(self, request: Request, body: GenerationBody) -> Serving:
        """What this request runs with. Raises what `Catalog.pick` raises."""
        session = body.prompt_cache_key or body.user
        return self.catalog.pick(body.model, self.tenant(request).tenant_id, session)

    def tenant(self, request: Request) -> Tenant:
        return self.authenticator.tenant(request.state.api_key)

    def isolation(self, request: Request, body: GenerationBody) -> bytes:
        """What enters the digest of the request's first block."""
        return self.authenticator.isolation(request.state.api_key, body.cache_salt)
