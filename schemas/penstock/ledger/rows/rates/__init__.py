"""Rates: ends of jobs counted by the minute, and their histograms of time."""
