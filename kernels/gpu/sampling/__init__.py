"""From logits to drawn tokens: `token_draw.py` is what the runner calls."""
