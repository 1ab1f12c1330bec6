"""What both sides of a process border must agree on: messages, hashes, events, errors, model names.

Imports nothing of ours, and of others only msgpack and xxhash (huggingface_hub when a hub name is resolved).
"""

__version__ = "0.1.0"
