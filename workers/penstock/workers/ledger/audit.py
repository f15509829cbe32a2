"""The audit log, of what is decided here; the gateway writes into it too."""

from penstock.producers.audit import Act as Act
from penstock.producers.audit import Entry as Entry
from penstock.producers.audit import add_subjects as add_subjects
from penstock.producers.audit import add_to_count as add_to_count
from penstock.producers.audit import find as find
from penstock.producers.audit import read as read
from penstock.producers.audit import write as write
