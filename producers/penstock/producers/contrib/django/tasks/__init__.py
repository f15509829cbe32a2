"""Django's tasks on Penstock: `django.tasks` from Django 6 on, and its backport `django-tasks` before.

INSTALLED_APPS = [..., "penstock.producers.contrib.django"]
TASKS = {"default": {"BACKEND": "penstock.producers.contrib.django.tasks.PenstockBackend"}}
"""

from penstock.producers.contrib.django.tasks.backend import PenstockBackend

__all__ = ["PenstockBackend"]
