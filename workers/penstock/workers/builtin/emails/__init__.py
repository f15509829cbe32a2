"""The emails worker."""
