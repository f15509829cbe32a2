"""The arrows of a job's states: those that the ledger declares, those that rows walk, and the page that shows them."""
