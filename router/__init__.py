"""The HTTP endpoint, the prefix index and the routing policy. No torch; Ray in `actor.py` alone."""
