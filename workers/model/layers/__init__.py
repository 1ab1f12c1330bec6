"""A decoder's layers over kernels and weights that are given to them."""
