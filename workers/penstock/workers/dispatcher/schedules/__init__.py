"""Schedules that the dispatcher declares and fires."""
