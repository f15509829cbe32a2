"""Spans of attempts, and the set-up of OpenTelemetry's SDK."""
