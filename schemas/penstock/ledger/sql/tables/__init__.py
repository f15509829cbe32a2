"""The ledger's tables. Only code that uses SQL imports this package; web backends that just enqueue do not."""

from __future__ import annotations

from penstock.ledger.sql.tables.alerts import alert_firings as alert_firings
from penstock.ledger.sql.tables.alerts import alert_silences as alert_silences
from penstock.ledger.sql.tables.alerts import alerts as alerts
from penstock.ledger.sql.tables.base import ID as ID
from penstock.ledger.sql.tables.base import NAME as NAME
from penstock.ledger.sql.tables.base import metadata as metadata
from penstock.ledger.sql.tables.controls import controls as controls
from penstock.ledger.sql.tables.decisions import audit as audit
from penstock.ledger.sql.tables.decisions import audit_subjects as audit_subjects
from penstock.ledger.sql.tables.decisions import dead_letters as dead_letters
from penstock.ledger.sql.tables.gateway import api_keys as api_keys
from penstock.ledger.sql.tables.gateway import requests as requests
from penstock.ledger.sql.tables.jobs import attempts as attempts
from penstock.ledger.sql.tables.jobs import cancelled_keys as cancelled_keys
from penstock.ledger.sql.tables.jobs import effects as effects
from penstock.ledger.sql.tables.jobs import held_jobs as held_jobs
from penstock.ledger.sql.tables.jobs import job_terms as job_terms
from penstock.ledger.sql.tables.jobs import jobs as jobs
from penstock.ledger.sql.tables.jobs import limit_waits as limit_waits
from penstock.ledger.sql.tables.jobs import suspect_runs as suspect_runs
from penstock.ledger.sql.tables.jobs import unique_keys as unique_keys
from penstock.ledger.sql.tables.members import workers as workers
from penstock.ledger.sql.tables.outbox import OUTBOX_CHANNEL as OUTBOX_CHANNEL
from penstock.ledger.sql.tables.outbox import OUTBOX_TRIGGER as OUTBOX_TRIGGER
from penstock.ledger.sql.tables.outbox import outbox as outbox
from penstock.ledger.sql.tables.outbox import outbox_metadata as outbox_metadata
from penstock.ledger.sql.tables.rates import rates as rates
from penstock.ledger.sql.tables.schedules import firings as firings
from penstock.ledger.sql.tables.schedules import schedules as schedules
from penstock.ledger.sql.tables.workflows import steps as steps
from penstock.ledger.sql.tables.workflows import workflows as workflows
