"""Pages about what does the work: queues, kinds, workers, limits, outboxes."""
