"""Routing policies of the field, each re-implemented from its description, and ours."""
