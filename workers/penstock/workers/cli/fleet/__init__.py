"""Commands about the whole installation: queues, kinds, limits, workers, alerts, settings, and what is paused."""
