"""Schedules on record: rules, commands, previews, firing."""
