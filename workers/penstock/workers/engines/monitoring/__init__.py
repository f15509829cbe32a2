"""Celery's events and remote control, for engines that are not Celery."""
