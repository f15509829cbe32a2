"""Celery applications whose tasks run here unchanged: `--celery module:app`.

Each task is an adopted kind. Celery's own tracer runs it, so what a task may do is Celery's; when it runs, and what
became of it, is the ledger's.
"""

__all__ = ["declare"]


def declare(name: str) -> None:
    """Register the kinds of an application's tasks, for processes that show their jobs: Flower, gateway, commands.

    Arguments:
        name: of the application, as `shop.celery:app`.

    Raises:
        ImportFailed: it cannot be imported. ConfigError: it is not an application, or a task cannot be a kind.
    """
    from penstock.config.settings import load_settings
    from penstock.workers.engines.celery.adopted.application import load_application
    from penstock.workers.engines.celery.adopted.tasks import adopt_tasks

    adopt_tasks(load_application(name), load_settings())
