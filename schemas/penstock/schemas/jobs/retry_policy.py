"""Retry policy: when to try a failed job again, and when to stop."""

from __future__ import annotations

import random
from datetime import timedelta

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from penstock.config.suggestions import did_you_mean
from penstock.schemas.jobs.durations import LONGEST


class RetryPolicy(BaseModel):
    """Exponential backoff with full jitter, bounded in tries and in age.

        RetryPolicy(max_attempts=8, by_error={RateLimited: RetryPolicy(max_attempts=50, max_delay=60)})

    The wait before the next attempt is drawn evenly from zero to `first_delay * factor ** (failures - 1)`, capped at
    `max_delay`. Full jitter spreads a crowd of failures best: Brooker, "Exponential Backoff And Jitter", AWS
    Architecture Blog, 2015.

    Durations may be given as `timedelta` or as seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    max_attempts: int = Field(default=10, ge=1, le=2**31 - 1, strict=True)
    """Failed attempts after which the job is dead; 1 means no retry."""
    first_delay: timedelta = Field(default=timedelta(seconds=1), ge=timedelta(0), le=LONGEST)
    """The longest wait after the first failure."""
    factor: float = Field(default=2.0, ge=1.0, allow_inf_nan=False)
    max_delay: timedelta = Field(default=timedelta(hours=1), ge=timedelta(0), le=LONGEST)
    """The cap on one wait."""
    jitter: bool = True
    """False waits exactly the computed time; for tests and for strict order."""
    max_age: timedelta | None = Field(default=None, gt=timedelta(0))
    """Age of the job, from its enqueueing, past which it is not tried again."""
    max_retry_after: timedelta = Field(default=timedelta(days=1), ge=timedelta(0))
    """The longest wait that an error may ask for (`Retry-After`). A longer one is not cut short: the job is dead."""
    give_up_on: tuple[type[BaseException], ...] = ()
    """Errors that no retry fixes: the job is dead at once."""
    by_error: dict[type[BaseException], RetryPolicy] = Field(default_factory=dict)
    """Policies for some errors and their subclasses, the nearest class first. Such a policy inherits from this one each
    setting that it does not give. Failures count together, whatever raised them."""

    @model_validator(mode="before")
    @classmethod
    def _known_names(cls, values: object) -> object:
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields:
                hint = did_you_mean(name, cls.model_fields) or f"; it has {', '.join(cls.model_fields)}"
                raise ValueError(f"a RetryPolicy has no {name!r}{hint}")
        return values

    @field_validator("give_up_on", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, type) else value

    @model_validator(mode="after")
    def _one_level(self) -> RetryPolicy:
        if any(policy.by_error for policy in self.by_error.values()):
            raise ValueError("a policy in by_error has no by_error of its own")
        return self

    def for_error(self, error: type[BaseException] | None) -> RetryPolicy:
        """The policy for an error of this type: one of `by_error`, completed by this one, or this one."""
        for base in () if error is None else error.__mro__:
            if base in self.give_up_on:
                return self
            if base in self.by_error:
                special = self.by_error[base]
                settings = {name: getattr(special, name) for name in special.model_fields_set}
                # It is nearer than a base class in give_up_on, so it is retried.
                return self.model_copy(update={"give_up_on": (), **settings, "by_error": {}})
        return self

    def wait(self, failures: int, *, age: timedelta = timedelta(0), asked: timedelta | None = None) -> timedelta:
        """Wait after a failure: `delay`, at most until `max_age`, and never less than `asked`.

        Arguments:
            age: time since the job was enqueued.
            asked: the wait that the error asks for.
        """
        wait = self.delay(failures)
        if self.max_age is not None:
            wait = min(wait, max(self.max_age - age, timedelta(0)))
        return wait if asked is None else max(wait, asked)

    def delay(self, failures: int) -> timedelta:
        """Wait after the `failures`-th failed attempt (1 or more)."""
        exponent = min(failures - 1, 64)  # 2.0 ** 1024 overflows a float
        longest = min(self.max_delay.total_seconds(), self.first_delay.total_seconds() * self.factor**exponent)
        return timedelta(seconds=random.uniform(0, longest) if self.jitter else longest)

    def exhausted_reason(
        self,
        error: type[BaseException] | None,
        failures: int,
        age: timedelta,
        asked: timedelta | None = None,
    ) -> str | None:
        """Reason why a job that just failed is dead; None if it is tried again.

        Arguments:
            error: type of the exception that the attempt raised; None: the handler returned a Retry.
            failures: failed attempts so far, this one included.
            age: time since the job was enqueued.
            asked: the wait that the error or the handler asks for.
        """
        policy = self.for_error(error)
        if error is not None and issubclass(error, policy.give_up_on):
            return f"{error.__name__} is not retried by this kind's policy"
        if failures >= policy.max_attempts:
            return f"failed {failures} of {policy.max_attempts} attempts"
        if policy.max_age is not None and age > policy.max_age:
            return f"older than max_age ({policy.max_age})"
        if asked is not None and policy.max_age is not None and age + asked > policy.max_age:
            return f"asked to wait {asked}, past max_age ({policy.max_age})"
        if asked is not None and error is not None and asked > policy.max_retry_after:
            return f"asked to wait {asked}, longer than max_retry_after ({policy.max_retry_after})"
        return None
