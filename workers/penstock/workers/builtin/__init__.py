"""The built-in workers. Importing this registers their kinds, handlers and resources (`penstock.handlers`)."""

from penstock.workers.builtin.emails import handler as emails
from penstock.workers.builtin.emails import transport as transport
from penstock.workers.builtin.reports import handler as reports
from penstock.workers.builtin.syncs import handler as syncs
from penstock.workers.builtin.uploads import handler as uploads
from penstock.workers.builtin.webhooks import handler as webhooks

__all__ = ["emails", "reports", "syncs", "uploads", "webhooks"]
