"""Runs of the built-in workers, each in a process of its own, whose memory is measured."""
