"""The reports worker."""
