"""Threads, tasks and pools of the source that no supervisor starts, with the reason of each."""

from __future__ import annotations

THREADS = {
    "config/supervision.py": "the supervision itself",
    "producers/senders/hosts.py": "one look-up of a name",
    "workers/builtin/reports/watch.py": "cancels one query, and ends with it",
    "workers/engines/host.py": "the drain and its deadline, which end with the process",
    "workers/engines/renewal/starts.py": "a report of one exit",
    "workers/executor/runtime/handler_threads.py": "handlers, whose errors are their jobs'",
    "workers/local/up/supervisor.py": "a report of one exit",
    "workers/telemetry/traces/otel_setup.py": "the last sending of a process that ends",
    "workers/local/demo/command.py": "the demo's own",
    "workers/local/demo/world/customers_api.py": "the demo's own",
}
"""File that starts a thread which is not a loop → its reason."""

TASKS = {
    "producers/gateway/auth/callers.py": "one reading of a key; those who wait for it get its error",
    "producers/gateway/auth/jwks.py": "one fetch, which notes its error for those who wait",
    "producers/gateway/routes/streams.py": "parts of one request, whose error is the request's",
    "producers/handles/redis_listener.py": "the supervised loop, and the parts of one connection, which it awaits",
    "producers/senders/batching.py": "what gathered while others were sent; each caller gets its error",
    "workers/executor/admission.py": "one message; `Tasks` logs an error",
    "workers/executor/attempt/child/pool.py": "the start and the end of one process; `Tasks` logs an error",
    "workers/executor/attempt/child/process.py": "the death of one child, and one effect for it",
    "workers/executor/attempt/suspects/main.py": "the one attempt of a child, whose outcome is its answer",
    "workers/executor/attempt/once.py": "one effect, whose error is its caller's",
    "workers/executor/claiming.py": "one batch; `Tasks` logs an error",
    "workers/executor/executor.py": "attempts, one message, and the supervised loops",
    "workers/executor/limit_gate.py": "one batch, and the supervised loop",
    "workers/executor/recorder.py": "one batch, and the supervised loop",
    "workers/executor/runtime/loop_thread.py": "`Tasks`, which starts them",
}
"""File that starts tasks → what they are: each ends by itself, or is supervised."""

POOLS = {
    "workers/engines/celery/adopted/ends.py",
    "producers/gateway/auth/jwks.py",
    "producers/senders/rabbitmq/sender.py",
    "workers/engines/celery/flower/services.py",
    "workers/executor/attempt/child/parent.py",
    "workers/executor/limit_gate.py",
    "workers/executor/runtime/io_threads.py",
    "workers/executor/runtime/handler_threads.py",
    "workers/executor/runtime/runtime.py",
    "workers/executor/watchdog.py",
    "workers/handlers/django_project.py",
}
"""Files with pools of threads for single calls, whose errors are those of the futures that their callers wait for."""
