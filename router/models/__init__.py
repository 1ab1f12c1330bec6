"""The models of a router: named by the membership, read from their files, each version with a core of its own."""
