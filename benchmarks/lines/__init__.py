"""The lines: measurements, a module for each kind. Each runs its contestants in turn, round after round, so that the
machine's drift hits all alike, and compares within a round."""
