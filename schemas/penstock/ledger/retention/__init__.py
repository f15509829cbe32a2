"""Deletion: pruning by age, and erasure of one person's data."""
