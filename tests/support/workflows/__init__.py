"""Workflows for tests, and a hand that drives them without a dispatcher."""
