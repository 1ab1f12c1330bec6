"""The control plane on Ray: launches, watches, heals and stops replicas and routers. No token passes through it."""
