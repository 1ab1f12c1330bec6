"""Products that torch's library does not make: in a fixed order, and of fp8."""
