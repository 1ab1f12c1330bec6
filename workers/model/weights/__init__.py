"""A checkpoint's tensors, put together as one rank needs them."""
