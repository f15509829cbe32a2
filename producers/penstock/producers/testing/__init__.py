"""For users' tests: what the app enqueues is caught in memory, asked about, and run when the test says so.

    with testing() as penstock:
        pay(order)                                              # enqueues with any producer of the app's
        penstock.assert_enqueued(SendInvoice, invoice_id=7)
        penstock.drain()                                        # runs the handlers, here

Under pytest the fixture `penstock` is the same. No server and no connection; see `docs/testing.md`.
"""

from penstock.producers.testing.jobs import Enqueued, Ran
from penstock.producers.testing.kit import Kit, testing

__all__ = ["Enqueued", "Kit", "Ran", "testing"]
