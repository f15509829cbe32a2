"""Pages about the whole installation: overview, alerts, audit, settings, search."""
