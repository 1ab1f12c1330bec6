"""Which tokens each step computes: admission, chunked prefill, decodes, preemption. Pure Python, no torch."""
