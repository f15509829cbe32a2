"""`penstock up`: everything on one machine, from nothing, stopped cleanly together."""
