"""Workflows on record: commands, and the reads and writes of a dispatcher that advances them. None of it runs a step's
method."""
