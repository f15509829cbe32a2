"""An app with a single module of handlers."""
