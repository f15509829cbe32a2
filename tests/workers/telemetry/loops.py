"""The supervised loops of the source, and an exception that is thrown into one of them."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.config.process.readings import Readings
from penstock.producers.handles.redis_listener import RedisListener
from penstock.producers.handles.subscriptions import Subscriptions
from penstock.workers.brokers.rabbitmq.consumer import RabbitmqConsumer
from penstock.workers.brokers.redis.leases import Leases
from penstock.workers.dispatcher.poller import Poller
from penstock.workers.engines.dramatiq.control import Control
from penstock.workers.engines.renewal.link import ParentLink
from penstock.workers.executor.followups.change_publisher import ChangePublisher
from penstock.workers.executor.heartbeat import Heartbeat
from penstock.workers.executor.intake import Intake
from penstock.workers.executor.limit_gate import LimitGate
from penstock.workers.executor.runtime.loop_thread import LoopThread
from penstock.workers.executor.watchdog import Watchdog
from penstock.workers.telemetry.failures.hooks import FailureHooks
from penstock.workers.telemetry.failures.reports import FailureReports
from penstock.workers.telemetry.health.http_server import HttpServer
from penstock.workers.telemetry.health.probe_socket import ProbeSocket
from penstock.workers.telemetry.metrics.otlp_metrics import Push

BODIES: dict[str, tuple[type[Any], str]] = {
    "config/process/readings.py": (Readings, "_run"),
    "producers/handles/redis_listener.py": (RedisListener, "_run"),
    "producers/handles/subscriptions.py": (Subscriptions, "_run_loop"),
    "workers/brokers/rabbitmq/consumer.py": (RabbitmqConsumer, "_beat"),
    "workers/brokers/redis/leases.py": (Leases, "_renew_regularly"),
    "workers/dispatcher/poller.py": (Poller, "_run"),
    "workers/engines/dramatiq/control.py": (Control, "_run"),
    "workers/engines/renewal/link.py": (ParentLink, "_run"),
    "workers/executor/executor.py": (Heartbeat, "run"),
    "workers/executor/followups/change_publisher.py": (ChangePublisher, "_run"),
    "workers/executor/intake.py": (Intake, "_run"),
    "workers/executor/limit_gate.py": (LimitGate, "_renew"),
    "workers/executor/runtime/loop_thread.py": (LoopThread, "_run"),
    "workers/executor/watchdog.py": (Watchdog, "_run"),
    "workers/telemetry/metrics/otlp_metrics.py": (Push, "_run"),
    "workers/telemetry/health/http_server.py": (HttpServer, "_run"),
    "workers/telemetry/health/probe_socket.py": (ProbeSocket, "_run"),
    "workers/telemetry/failures/hooks.py": (FailureHooks, "_run"),
    "workers/telemetry/failures/reports.py": (FailureReports, "_run"),
}
"""File that starts a supervised loop → the body of the loop; of `executor.py` there is `Overdue.run`, too."""


class Throwing:
    """Replaces the body of a loop by one that raises once, and counts its starts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type[Any], name: str) -> None:
        self.starts = 0
        original = getattr(owner, name)

        def body(*arguments: Any) -> Any:
            self.starts += 1
            if self.starts == 1:
                raise SystemExit("thrown into the loop")
            return original(*arguments)

        monkeypatch.setattr(owner, name, body)
