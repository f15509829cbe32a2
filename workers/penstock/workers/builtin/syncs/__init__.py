"""The syncs worker."""
