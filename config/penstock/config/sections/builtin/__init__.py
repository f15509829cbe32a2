"""Settings of the four built-in workers: `[uploads]`, `[emails]`, `[reports.NAME]`, `[syncs.NAME]`."""
