"""`penstock schedules`."""
