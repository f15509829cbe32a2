"""Isolated handlers: each attempt in a child process of its own, which can be killed and capped in memory.

Children are forked off a clean server process that has imported the handlers and nothing else has touched: no
threads, no connections. Job and result cross as JSON. A child leads a session of its own: it ends with all that it
started, and with its worker.
"""
