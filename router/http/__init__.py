"""The OpenAI-compatible endpoint: requests to token ids, outputs to JSON and server-sent events."""
