"""The model on a device: config, weights, decoder, sampler, and the CPU `Runner`. Torch begins here."""
