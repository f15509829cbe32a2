"""Metrics of a worker and of a dispatcher, and their way out by OTLP."""
