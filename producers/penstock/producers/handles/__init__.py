"""Job handles: status, waiting, watching, cancelling."""
