"""Every error that Penstock raises on purpose, under one root.

They are in the lowest layer so that every layer can raise them; the errors of a single tool are in its module. A
message says what happened, to which job or setting, and what to do about it. `penstock.producers` and
`penstock.workers` export the errors that their callers meet.

    PenstockError
    ├── ConfigError
    │   ├── ImportFailed              penstock.workers.handlers.discovery
    │   └── PortInUse                 penstock.workers.local.up.ports
    ├── FolderInUse                   penstock.workers.local.up.lock
    ├── ProcessFailed                 penstock.config.supervision
    ├── KindError
    │   └── DuplicateKind
    ├── InvalidJob
    │   ├── PayloadTooLarge
    │   └── UnknownQueue
    ├── DuplicateJob
    ├── QueueFull
    ├── BrokerUnavailable
    │   └── BrokerRefused
    ├── UndecodableMessage
    ├── InvalidEvent
    ├── WrongSignature
    ├── InvalidToken
    ├── LedgerUnavailable
    ├── DatabaseUnavailable
    ├── JobNotFound
    ├── AmbiguousId
    ├── ScheduleNotFound
    ├── AlertNotFound
    ├── LimitNotFound
    ├── WorkerNotFound
    ├── InvalidState
    ├── JobFailed
    ├── WaitTimeout
    ├── WatchClosed
    ├── NotTracked
    ├── InvalidResult
    ├── StorageError
    │   ├── InvalidKey
    │   └── ObjectNotFound
    ├── MailRefused                   penstock.workers.builtin.emails.mailers.mailer
    └── MailUnavailable               penstock.workers.builtin.emails.mailers.mailer

Handlers also raise or catch these, which are about one attempt (`penstock.workers.handlers.returns`):

    Exception
    ├── Permanent
    ├── NotDone
    ├── InDoubt
    ├── JobCancelled
    └── SoftTimeLimitExceeded
"""

from __future__ import annotations


class PenstockError(Exception):
    """The root of Penstock's errors."""


class ConfigError(PenstockError):
    """A setting is wrong. The message names the setting and, for a file, the file and line."""


class InvalidJob(PenstockError):
    """A job cannot be sent as it is: a wrong field, option or size. Nothing was sent."""


class PayloadTooLarge(InvalidJob):
    """The encoded job is larger than `max_payload_bytes`.

    Attributes:
        size: the encoded size in bytes.
        limit: the limit in bytes.
    """

    def __init__(self, kind: str, size: int, limit: int) -> None:
        super().__init__(
            f"{kind}: the payload is {size} bytes, over the limit of {limit}; "
            "put it in storage and send the reference, or raise max_payload_bytes"
        )
        self.kind, self.size, self.limit = kind, size, limit


class UnknownQueue(InvalidJob):
    """No kind names the queue, and penstock.toml does not list it."""


class KindError(PenstockError):
    """A kind, handler or upcaster is declared wrongly (at import, before anything runs)."""


class DuplicateKind(KindError):
    """Two classes claim one kind or alias."""


class UndecodableMessage(PenstockError):
    """Bytes off the wire cannot become a job. The worker keeps them as a dead letter.

    Attributes:
        reason: `undecodable`, `too_large`, `unknown_kind`, `invalid_payload`, `unknown_version`, `unsupported`,
            `no_handler` or `not_configured`.
        newer: whether a worker with newer code may be able to run it, as during a rolling deploy.
    """

    def __init__(self, reason: str, detail: str, *, newer: bool = False) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.newer = reason, detail, newer


class InvalidEvent(PenstockError):
    """A request is not a valid event, or not a valid webhook of its sender.

    Attributes:
        attribute: of the event, or the header or part of the request, that is wrong.
        detail: what is wrong with it.
    """

    def __init__(self, attribute: str, detail: str) -> None:
        super().__init__(f"{attribute}: {detail}")
        self.attribute, self.detail = attribute, detail


class WrongSignature(PenstockError):
    """The signature of a webhook does not match its secret, or is too old."""


class BrokerUnavailable(PenstockError):
    """The broker cannot be reached in the time allowed. The message names the host, never the password."""


class BrokerRefused(BrokerUnavailable):
    """The broker answers and takes no jobs now: it is out of memory, has an alarm, or cannot write to its disk."""


class QueueFull(PenstockError):
    """The queue holds `max_length` jobs; nothing was sent.

    Attributes:
        queue: its name.
        max_length: its limit in jobs.
    """

    def __init__(self, queue: str, max_length: int) -> None:
        super().__init__(
            f"queue {queue!r} holds its max_length of {max_length} jobs; "
            "add workers, wait, or raise max_length in penstock.toml"
        )
        self.queue, self.max_length = queue, max_length


class DuplicateJob(PenstockError):
    """Another job holds the key, and the policy is `reject`. Nothing was sent.

    Attributes:
        kind, key: of both.
        existing_id: the job that holds it.
    """

    def __init__(self, kind: str, key: str, existing_id: str) -> None:
        super().__init__(f'{kind}: key {key!r} is held by job {existing_id}; unique="existing" would answer with that')
        self.kind, self.key, self.existing_id = kind, key, existing_id


class LedgerUnavailable(PenstockError):
    """The ledger's database cannot be reached, or is not set up (`penstock db upgrade`)."""


class DatabaseUnavailable(PenstockError):
    """A database that a built-in worker uses is down, full or out of connections. Trying again may help for days."""


class JobNotFound(PenstockError):
    """No job with this id is recorded in the ledger."""


class AmbiguousId(PenstockError):
    """Several jobs have ids that begin as the given one."""


class ScheduleNotFound(PenstockError):
    """No schedule has this name."""


class WorkerNotFound(PenstockError):
    """No worker or dispatcher has this name."""


class LimitNotFound(PenstockError):
    """No worker has reported a limit of this name, or it has no shares."""


class AlertNotFound(PenstockError):
    """penstock.toml has no alert of this name."""


class JobFailed(PenstockError):
    """`JobHandle.wait()` or `.result()` of a job that ended without a result.

    Attributes:
        job_id: its id.
        state: `dead`, `discarded` or `cancelled`.
        error: the error of the last attempt, or None.
    """

    def __init__(self, job_id: str, state: str, error: str | None) -> None:
        super().__init__(f"job {job_id} is {state}" + (f": {error}" if error else ""))
        self.job_id, self.state, self.error = job_id, state, error


class WaitTimeout(PenstockError, TimeoutError):
    """`JobHandle.wait(timeout=…)` ended before the job did. The job goes on."""


class WatchClosed(PenstockError):
    """The producer was closed while one of its jobs was watched or waited for. The job goes on."""


class NotTracked(PenstockError):
    """`JobHandle.wait()` and the like of a kind with `track=False`, whose success is recorded nowhere."""


class InvalidResult(PenstockError):
    """A result is not of the type that `JobHandle.result(as_type=…)` names."""


class InvalidState(PenstockError):
    """The job is in a state in which this cannot be done, such as retrying a running job."""


class InvalidToken(PenstockError):
    """A token to follow a job is forged, damaged or expired."""


class StorageError(PenstockError):
    """The storage failed or cannot be reached; the message names the key. Trying again may help."""


class InvalidKey(StorageError, ValueError):
    """A key that could leave the storage's folder or that some storage cannot hold."""


class ObjectNotFound(StorageError, LookupError):
    """No object has this key."""
