"""Where attempts run besides the worker's loop and its threads."""
