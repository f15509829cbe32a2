"""A worker or dispatcher seen from outside: logs, Sentry, spans, metrics, health."""
