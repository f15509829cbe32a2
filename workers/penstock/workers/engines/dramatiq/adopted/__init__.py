"""Dramatiq applications as they are: their actors become kinds, and their own middleware runs around each.

Nothing here is imported by a worker that adopts no actors.
"""

__all__ = ["declare"]


def declare(*modules: str) -> None:
    """Register the kinds of an application's actors, for processes that show their jobs: Flower, gateway, commands.

    Arguments:
        modules: those that declare actors, as `shop.actors`.

    Raises:
        ImportFailed: one cannot be imported. ConfigError: they declare no actors; KindError: one cannot be a kind.
    """
    from penstock.workers.engines.dramatiq.adopted.application import load_application

    load_application(modules).declare_kinds()
