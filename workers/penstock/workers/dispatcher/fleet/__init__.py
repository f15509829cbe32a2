"""The dispatcher among all: its heartbeat, and the alerts about the installation."""
