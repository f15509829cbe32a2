"""Alerts: conditions of `[alerts.NAME]`, their onsets and ends on record, their notifications and silences."""
