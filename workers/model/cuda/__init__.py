"""The parts of the runner for GPUs that know a device's memory, streams and graphs. Used by `cuda_runner.py`."""
