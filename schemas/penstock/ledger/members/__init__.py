"""Workers and dispatchers, by their leases, and callers of the gateway, by their keys."""
