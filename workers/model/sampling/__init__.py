"""From logits to tokens on a CPU, and what of it a GPU's runner shares."""
