"""Jobs and what is declared beside them: kind, retry policy, uniqueness, limits."""
