"""Schedules on record: rules, rows, declarations, commands, previews and firing."""
