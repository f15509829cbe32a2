"""One module a contestant: its job, its handlers and how it sends. Each runs in the environment its packages are in.

A module has `enqueue(number, text)`, plain or async, and may have `many(messages)` and `connect()`. Its worker finds in
it what that framework's command line wants. Every handler validates its two fields and then calls `tick`.
"""
