"""The pages of the console, and their acts."""

from __future__ import annotations

from penstock.workers.engines.celery.flower.page import Handler
from penstock.workers.engines.celery.flower.pages.fleet import controls, kinds, limits, outboxes, queues, workers
from penstock.workers.engines.celery.flower.pages.house import alerts, audit, overview, search, settings
from penstock.workers.engines.celery.flower.pages.work import dead_letters, job, jobs, schedules, workflows

_MODULES = (
    *(overview, search, alerts, audit, settings),
    *(jobs, job, dead_letters, workflows, schedules),
    *(queues, controls, kinds, limits, workers, outboxes),
)
HANDLERS: tuple[type[Handler], ...] = tuple(handler for module in _MODULES for handler in module.HANDLERS)
"""All pages and acts. Of two whose patterns match, the later one answers."""
