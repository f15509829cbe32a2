"""The uploads worker."""
