"""Settings of a Django project, of which a worker knows the name alone."""

import json
import os

SECRET_KEY = "only for tests, only for tests"
INSTALLED_APPS = ["depot", "loans"]
DATABASES = {"default": json.loads(os.environ["DEPOT_DATABASE"])}
CACHES = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": os.environ["DEPOT_CACHE"]}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
LOGGING = {"version": 1}  # which disables all loggers that exist
