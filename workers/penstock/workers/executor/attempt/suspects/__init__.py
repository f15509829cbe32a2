"""Suspects: jobs that ran when their worker crashed. Each runs in a process of its own until it has ended.

One of the jobs that a crash cut off has caused it, and the others are innocent: run together again, they would crash
together again. The child of a suspect runs the whole attempt, with its session, its effects and its outcome, so that
a handler finds there what it finds in the worker. If the child dies, that is a crash of this one job.
"""
