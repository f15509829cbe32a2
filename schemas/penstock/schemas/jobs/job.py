"""`Job`: one typed, immutable message asking for one piece of work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self, Unpack, dataclass_transform

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from penstock.config.errors import KindError
from penstock.schemas.jobs.declaration import declare_kind, refuse_unknown
from penstock.schemas.jobs.durations import Duration
from penstock.schemas.jobs.kind import DeliveryPromise, Kind, Priority, registry
from penstock.schemas.jobs.limits import Limit
from penstock.schemas.jobs.retry_policy import RetryPolicy
from penstock.schemas.jobs.sensitive import HIDDEN, hide, holds, shapes_of_model
from penstock.schemas.jobs.unique_policy import UniquePolicy

if TYPE_CHECKING:
    # mypy checks the keywords of a class statement only where the metaclass is not pydantic's. To mypy this one is in
    # conflict with that, so it takes a job class to have none.
    class _Metaclass(type): ...

else:
    _Metaclass = type(BaseModel)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field, PrivateAttr))
class Job(BaseModel, metaclass=_Metaclass):  # type: ignore[metaclass]
    """The base of every message. A subclass with a `kind` is registered when its class statement runs.

        class SendInvoice(Job, kind="invoice.send", queue="emails", version=2, timeout=30):
            invoice_id: int
            to: EmailStr

    Class keywords:
        kind: the stable name on the wire. Without one the class is a base for others and cannot be sent.
        queue: the queue that carries it; `default` if not given.
        version: of the fields, from 1; raise it with an upcaster when they change incompatibly.
        retry: a `RetryPolicy`.
        timeout: the longest an attempt may run, in seconds or as a timedelta.
        soft_timeout: when its handler gets `SoftTimeLimitExceeded` and may still end in good order; less than
            `timeout`.
        delivery: `at_least_once`, `once` or `at_most_once`.
        track: False keeps only failures in the ledger.
        unique_by: names of fields whose values make the job's key.
        unique: what becomes of a job whose key another one of this kind and tenant holds: `reject`, `existing`,
            `replace` or `debounce`. Without `unique_by` all jobs of the kind have one key.
        unique_for: how long a job holds its key, in seconds or as a timedelta; None: until it has ended.
        unique_states: the states in which it does, in place of all that are not final.
        debounce: the quiet period of that policy, in seconds or as a timedelta.
        aliases: former kinds, still understood.
        priority: `high`, `normal` or `low`, unless `enqueue` says otherwise.
        expires_in: age past which a waiting job is discarded, in seconds or as a timedelta.
        max_crashes: crashes of a worker under it after which it is a dead letter.
        limits: `Concurrency` and `Rate`, all of which a job must be let through by.
        search: names of fields by whose values people find jobs in lists; none that is `Sensitive`.

    Raises:
        KindError: a keyword is wrong; DuplicateKind: another class has this kind.
    """

    # JSON has no infinity and no NaN: they would arrive as null.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    __kind__: ClassVar[Kind | None] = None

    def __init_subclass__(
        cls,
        *,
        kind: str | None = None,
        queue: str = "default",
        version: int = 1,
        retry: RetryPolicy | None = None,
        timeout: Duration | None = None,
        soft_timeout: Duration | None = None,
        delivery: DeliveryPromise = "at_least_once",
        track: bool = True,
        unique_by: Sequence[str] = (),
        unique: UniquePolicy | None = None,
        unique_for: Duration | None = None,
        unique_states: Sequence[str] | None = None,
        debounce: Duration | None = None,
        aliases: Sequence[str] = (),
        priority: Priority = "normal",
        expires_in: Duration | None = None,
        max_crashes: int | None = None,
        limits: Sequence[Limit] = (),
        search: Sequence[str] = (),
        **config: Unpack[ConfigDict],
    ) -> None:
        # The signature is for editors, and the keywords are read below. Pydantic has taken its own out of `config`.
        refuse_unknown(cls, config, KEYWORDS)
        super().__init_subclass__()

    @classmethod
    def __pydantic_init_subclass__(cls, **keywords: Any) -> None:
        cls.__kind__ = declare_kind(cls, keywords, METHODS)
        if cls.__kind__ is not None:
            registry.add(cls.__kind__)

    @classmethod
    def kind(cls) -> Kind:
        """The kind that this class declares.

        Raises:
            KindError: the class has no kind.
        """
        if cls.__kind__ is None:
            raise KindError(f'{cls.__qualname__} has no kind; declare it as class {cls.__name__}(Job, kind="…")')
        return cls.__kind__

    def redacted(self) -> dict[str, Any]:
        """The fields as JSON values, with `***` for sensitive ones."""
        return self.kind().redact(self.model_dump(mode="json"))

    def with_changes(self, changes: Mapping[str, Any]) -> Self:
        """A copy with some fields changed, validated again."""
        return self.model_validate({**self.model_dump(), **changes})

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        # A base without a kind may have sensitive fields, too.
        shapes = self.__kind__.shapes if self.__kind__ is not None else shapes_of_model(type(self))
        if not holds(shapes):
            return list(super().__repr_args__())
        try:
            redacted = hide(self.model_dump(mode="json", warnings=False), shapes)
        except Exception:  # whatever a serializer raises
            redacted = {}
        fields = shapes[0].fields or {}
        plain = {name for name, inner in fields.items() if not holds(inner)}
        return [
            (name, value if name in plain else redacted.get(name or "", HIDDEN))
            for name, value in super().__repr_args__()
        ]

    def __str__(self) -> str:
        return repr(self)


KEYWORDS = tuple(Job.__init_subclass__.__kwdefaults__ or ())
"""Class keywords of a job."""
METHODS = ("kind", "redacted", "with_changes")
"""Methods of a job, besides pydantic's, which it guards itself."""
