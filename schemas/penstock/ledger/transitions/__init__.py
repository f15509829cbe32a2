"""The state machine of a job, a file for each arrow."""
