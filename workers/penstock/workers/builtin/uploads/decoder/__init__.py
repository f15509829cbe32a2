"""The process that reads what strangers sent. It runs with caps of memory and time, and without the worker's secrets.

Nothing here imports pydantic or another part of Penstock: the process must start fast.
"""
