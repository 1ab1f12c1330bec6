"""The kernels in Triton, one operator a file. Called by the runner of a GPU; the only place that imports triton."""
