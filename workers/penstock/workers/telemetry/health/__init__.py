"""The port and the socket by which a worker or dispatcher says how it is."""
