"""Penstock beside its peers: the same job, the same server, the same run. `python -m benchmarks`."""
