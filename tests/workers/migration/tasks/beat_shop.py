"""A Django project whose Celery application keeps its schedules in the tables of django-celery-beat."""

from __future__ import annotations

import os
from typing import Any

import celery
import django
from celery.schedules import crontab
from django.conf import settings

if not settings.configured:
    settings.configure(
        SECRET_KEY="for tests",
        INSTALLED_APPS=["django_celery_beat"],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": os.environ["BEAT_SHOP_DATABASE"],
                "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 60},
            }
        },
        USE_TZ=True,
        TIME_ZONE="Europe/Berlin",
    )
    django.setup()

app = celery.Celery("beat_shop", broker=os.environ["PENSTOCK_BROKER_URL"])
app.conf.update(
    beat_scheduler="django_celery_beat.schedulers:DatabaseScheduler",
    timezone="Europe/Berlin",
    task_default_queue=os.environ["BEAT_SHOP_QUEUE"],
    beat_schedule={
        "of the code": {"task": "shop.note", "schedule": crontab(minute=0, hour=3), "kwargs": {"text": "nightly"}}
    },
)


@app.task(name="shop.note")
def note(text: str, copies: int = 1) -> Any:
    return text * copies
