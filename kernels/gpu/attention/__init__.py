"""Attention over the paged pool: `operator.py` is what layers call, `paged_attention.py` the kernel."""
