"""Workers and dispatchers that are alive, by their leases."""
