"""A layer's experts: `stacked_experts.py` is what layers call."""
