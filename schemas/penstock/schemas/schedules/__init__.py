"""Schedules as they are declared: cron rules, calendars, and the times that follow."""
