"""Rows: how each thing is written and read back."""
