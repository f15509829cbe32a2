"""The ledger: the SQL record of jobs, attempts and outcomes, and the truth about them.

Every write of a job's state is in here, and nothing that speaks to a broker. `transitions/` is the state machine, a
file for each arrow; `rows/` says how each thing is written; `queries/` reads.
"""
