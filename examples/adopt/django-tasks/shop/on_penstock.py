"""The same settings, with the tasks on Penstock: no other file of the project changes."""

from shop.settings import *  # noqa: F403

INSTALLED_APPS = [*INSTALLED_APPS, "penstock.producers.contrib.django"]  # noqa: F405
TASKS = {
    "default": {
        "BACKEND": "penstock.producers.contrib.django.tasks.PenstockBackend",
        "QUEUES": ["default", "mails"],
        "OPTIONS": {"tasks": {"shop.tasks.charge": {"retry": {"max_attempts": 3, "first_delay": 0.1}}}},
    }
}
