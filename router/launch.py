"""What the controller tells one router at its start. Knows neither Ray nor HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.deployment_secrets import DeploymentSecrets


@dataclass(frozen=True, slots=True)
class RouterLaunch:
    router_id: str
    host: str  # `node`: the address by which Ray knows the router's node
    port: int  # 0: a free one
    secrets: DeploymentSecrets = field(repr=False)
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    no_api_key: bool = False  # whoever reaches the address may ask
    namespace: str = "trunkline"  # of Ray, where
    controller: str = "controller"  # is the actor that publishes the membership
