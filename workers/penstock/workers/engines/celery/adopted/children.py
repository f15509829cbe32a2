"""Adopts the worker's application again, in the server of processes that run attempts, which imports this module."""

from __future__ import annotations

import os

from penstock.config.settings import load_settings
from penstock.workers.engines.celery.adopted import application

if application.VARIABLE in os.environ and not application.adopted:
    application.adopt_application(os.environ[application.VARIABLE], load_settings())
    os.register_at_fork(after_in_child=application.init_process)
