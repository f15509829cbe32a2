"""Jobs and their declarations: kind, retry policy, uniqueness, limits."""
