"""The ledger: the SQL record of jobs, attempts and outcomes, and the truth about them.

`claims` gives and ends the right to run a job, `delays` keeps what is not due, `deadletters` what
will not be tried again, `queries` answers people, `heartbeats` says which workers live.
"""
