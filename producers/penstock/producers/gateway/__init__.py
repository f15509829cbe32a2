"""The HTTP gateway: jobs for what is not Python. Needs penstock[gateway].

A router of another module takes `Authenticated` and `Here` as parameters of its routes, raises `Problem`, and is added
to `app.ROUTERS`.
"""

from penstock.producers.gateway.app import create_app
from penstock.producers.gateway.auth.callers import Caller
from penstock.producers.gateway.dependencies import Authenticated, Here, authenticated, services
from penstock.producers.gateway.problems import Problem

__all__ = ["Authenticated", "Caller", "Here", "Problem", "authenticated", "create_app", "services"]
