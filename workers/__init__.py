"""One replica's engine: scheduler, paged KV pool, prefix cache, model, sampler, and the server in front of it.

`request`, `block_pool`, `prefix_cache`, `admission` and `scheduler` are pure Python and know no torch. Ray stands in
`actor.py` alone.
"""
