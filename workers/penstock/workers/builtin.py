"""The four built-in workers. Importing this registers their kinds, handlers and resources (`penstock.handlers`)."""

from penstock.workers import emails, reports, syncs, uploads

__all__ = ["emails", "reports", "syncs", "uploads"]
