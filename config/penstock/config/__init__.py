"""Settings, logging and the errors: the lowest layer, which imports no other Penstock package.

`Settings` and `load_settings` come from `penstock.config.settings`; importing this package loads no pydantic-settings,
so that a web backend pays for it only when it calls `Producer.from_settings()`.
"""

from penstock.config.errors import ConfigError, PenstockError

__all__ = ["ConfigError", "PenstockError"]
