"""The built-in workers. Importing this registers their kinds, handlers and resources (`penstock.handlers`)."""

from penstock.workers import deliveries, emails, reports, syncs, uploads

__all__ = ["deliveries", "emails", "reports", "syncs", "uploads"]
