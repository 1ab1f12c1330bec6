"""One short file per model family: its Hugging Face config to a `ModelSpec`, and its table of weight names."""
