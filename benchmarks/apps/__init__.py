"""Our contestants, and the applications of the lines about web backends and workflows.

A contestant's module has `enqueue(number, text)`, plain or async, and may have `many(messages)` and `connect()`. Its
worker finds in it what that framework's command line wants. Every handler validates its two fields and then calls
`tick`.
"""
