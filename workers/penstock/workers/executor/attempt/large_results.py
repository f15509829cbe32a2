"""Results that are too large for the ledger: they are stored before the outcome that refers to them is recorded."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from penstock.config.errors import ConfigError, StorageError
from penstock.ledger.queries.results import result_ref, write_result
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.workers.executor.runtime.runtime import Runtime
from penstock.workers.handlers.storage import Storage

log = logging.getLogger("penstock.executor")


class LargeResults:
    """Stores large results, in threads.

    Attributes:
        limit: the most bytes of JSON that the ledger takes.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.limit = runtime.settings.max_result_bytes_inline
        self._resources, self._threads = runtime.resources, runtime.threads

    def holds(self, outcome: AttemptOutcome) -> bool:
        """Whether the outcome's result is too large for the ledger."""
        result = outcome.result
        if result is None or 4 * len(result) <= self.limit:  # no character takes more bytes
            return False
        return outcome.claim.tracked and len(result.encode()) > self.limit

    async def store(self, outcome: AttemptOutcome) -> None:
        """Store the outcome's result, and refer to it. Raises StorageError, which fails the attempt."""
        assert outcome.result is not None
        data, claim = outcome.result.encode(), outcome.claim
        try:
            storage = await self._resources.get(Storage)
            write = partial(write_result, storage, claim.message.id, claim.fence, data)
            outcome.result_ref = await asyncio.get_running_loop().run_in_executor(self._threads, write)
        except (StorageError, ConfigError) as error:
            raise StorageError(
                f"its result of {len(data)} bytes is over max_result_bytes_inline ({self.limit}) "
                f"and cannot be put into the storage: {error}"
            ) from error

    async def drop(self, outcome: AttemptOutcome) -> None:
        """Delete the result of an outcome that was refused: another worker has the job."""
        ref = result_ref(outcome.claim.message.id, outcome.claim.fence)
        try:
            storage = await self._resources.get(Storage)
            await asyncio.get_running_loop().run_in_executor(self._threads, storage.delete, ref)
        except Exception as error:
            log.warning("the stored result %s of a refused outcome is left behind: %s", ref, error)
