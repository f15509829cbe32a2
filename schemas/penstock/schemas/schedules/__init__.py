"""Schedules as they are declared: rules, cron, calendars, and the times that follow from them."""
