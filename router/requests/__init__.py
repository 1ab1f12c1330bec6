"""A request at the router, from its place on a replica to its end: placed, moved, bounded, refused."""
