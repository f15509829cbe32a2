"""Renewal: a worker process that has done enough jobs, or has grown too large, is replaced without a gap.

`penstock worker` is then a small parent (`parent.py`) with a worker process below it. The process counts (`wear.py`)
and asks the parent over a socket (`link.py`) for a successor. Once that one fetches jobs, the first one drains.
"""
