"""The paged KV pool's bookkeeping and the prefix cache over it. Pure Python: block ids, never memory."""
