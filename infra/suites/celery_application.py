"""The application that Celery's integration suite tests, for our worker and dispatcher: `--celery` names it."""

import importlib
import os

from celery.contrib.testing.app import TestApp

app = TestApp(
    set_as_current=True,
    enable_logging=True,
    config={
        "broker_url": os.environ["TEST_BROKER"],
        "result_backend": os.environ["TEST_BACKEND"],
        "result_extended": True,
        "task_create_missing_queues": False,
        "include": ["t.integration.tasks"],
    },
)
tasks = importlib.import_module("t.integration.tasks")
app.register_task(tasks.ClassBasedAutoRetryTask)
