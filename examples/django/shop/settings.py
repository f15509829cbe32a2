"""Settings of the project."""

import os

SECRET_KEY = os.environ.get("SHOP_SECRET", "a secret only for trying this out")
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
INSTALLED_APPS = ["shop", "penstock.producers.contrib.django"]
MIDDLEWARE = ["penstock.producers.contrib.django.traces"]
ROOT_URLCONF = "shop.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("SHOP_DATABASE", "shop.db"),
        # A transaction that reads first and then writes would fail at once while the dispatcher writes.
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20},
    }
}
