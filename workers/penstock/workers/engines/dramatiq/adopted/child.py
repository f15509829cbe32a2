"""Declares the handlers of the application again, in a child process of a worker, which imports this module."""

from __future__ import annotations

import json
import os

from penstock.config.settings import load_settings
from penstock.workers.engines.dramatiq.adopted.application import VARIABLE, load_application

load_application(json.loads(os.environ[VARIABLE])).add_handlers(load_settings())
