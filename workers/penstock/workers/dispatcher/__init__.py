"""The dispatcher: sends what is due, fires schedules, takes in stock clients' jobs, buries what brokers gave up on.

One process runs all of its services; any number of such processes may run, and none leads.
"""
