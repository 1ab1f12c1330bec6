"""Text to token ids and back: tokenizer, chat template, incremental detokenization. Used by `trunkline` too."""
