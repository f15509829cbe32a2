"""The dispatcher: sends due jobs, relays outboxes, fires schedules, advances workflows, and saves lost jobs.

One process runs all of its services; any number of such processes may run, and none leads.
"""
