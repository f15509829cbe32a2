"""Failed attempts and deaths: their lines in the log, events of Sentry, and the application's own hooks."""
