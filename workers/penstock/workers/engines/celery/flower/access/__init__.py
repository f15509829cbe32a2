"""Access to Flower: people, roles, bounds."""
