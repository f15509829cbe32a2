"""Queues and limits of the whole installation, as the command line and the console show and change them."""
