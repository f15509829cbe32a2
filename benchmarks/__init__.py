"""Benchmarks of Penstock and its peers: the same job, the same server, the same run. `python -m benchmarks`."""
