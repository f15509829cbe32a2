"""The peers: a module for each, with its job, its handlers and how it sends. Each runs in an environment of its own.

See `benchmarks.apps` for the functions of such a module.
"""
