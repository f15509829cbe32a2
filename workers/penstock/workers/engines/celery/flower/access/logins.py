"""Logins with a name and a password: hashes of `[[console.users]]`, and logins of the environment.

Checking a hash takes some 50 ms and 16 MiB on purpose, so it runs in threads, few at a time. A login that was right is
remembered by a digest that is keyed by a secret of this process; of wrong ones, each address has only so many a minute.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Mapping

from penstock.config.printable import printable
from penstock.config.sections.console import ConsoleSettings
from penstock.config.sections.passwords import LONGEST, PasswordHash, hash_password
from penstock.workers.engines.celery.flower.access.people import Person

log = logging.getLogger("penstock.flower")

_REMEMBERED = 1000
"""Logins that were right."""
_REMEMBERED_SECONDS = 3600.0
_AT_A_TIME = 2
_WINDOW_SECONDS = 60.0
_FAILURES_OF_NAME, _FAILURES_OF_ADDRESS = 5, 20
"""Wrong logins in the window: of an address for one name, and of an address in all."""
_ADDRESSES = 10_000


class TooManyFailures(Exception):
    """An address has had too many wrong logins.

    Attributes:
        retry_after: seconds until the next is looked at.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many wrong logins; try again in {retry_after} seconds")
        self.retry_after = retry_after


class Logins:
    """The people who have a name and a password.

    Arguments:
        plain: `name:password` of the environment → its person.
    """

    def __init__(self, console: ConsoleSettings, plain: Mapping[str, Person]) -> None:
        self._secret = secrets.token_bytes(32)
        self._plain = {self._digest(login): person for login, person in plain.items()}
        self._hashes = {
            user.name: (PasswordHash.parse(user.password_hash), Person.of(user))
            for user in console.users
            if user.password_hash is not None
        }
        self._no_one = PasswordHash.parse(hash_password(secrets.token_hex(16)))
        self._right: OrderedDict[bytes, tuple[float, Person]] = OrderedDict()
        self._failures = Failures()
        self._at_a_time = asyncio.Semaphore(_AT_A_TIME)

    @property
    def exist(self) -> bool:
        return bool(self._plain or self._hashes)

    async def person(self, name: str, password: str, address: str) -> Person | None:
        """The person; None: the login is wrong.

        Raises:
            TooManyFailures: the address has had so many wrong ones that this one is not looked at.
        """
        digest = self._digest(f"{name}:{password}")
        if (person := self._known(digest)) is not None:
            return person
        self._failures.check(address, name)
        async with self._at_a_time:
            person = self._known(digest)  # another request of the same page came first
            if person is None and self._hashes and len(password) <= LONGEST:
                self._failures.check(address, name)
                person = await self._by_hash(name, password)
        if person is not None:
            self._remember(digest, person)
            return person
        self._failures.add(address, name)
        log.warning("a login was wrong: %s, from %s", printable(name)[:200], address)
        return None

    def _known(self, digest: bytes) -> Person | None:
        if (person := self._plain.get(digest)) is not None:
            return person
        at, person = self._right.get(digest, (0.0, None))
        if person is None or time.monotonic() - at > _REMEMBERED_SECONDS:
            self._right.pop(digest, None)
            return None
        return person

    async def _by_hash(self, name: str, password: str) -> Person | None:
        """An unknown name takes as long as a wrong password."""
        password_hash, person = self._hashes.get(name, (self._no_one, None))
        matches = await asyncio.get_running_loop().run_in_executor(None, password_hash.matches, password)
        return person if matches else None

    def _remember(self, digest: bytes, person: Person) -> None:
        self._right[digest] = time.monotonic(), person
        while len(self._right) > _REMEMBERED:
            self._right.popitem(last=False)

    def _digest(self, login: str) -> bytes:
        return hmac.digest(self._secret, login.encode("utf-8", "surrogatepass"), "sha256")


class Failures:
    """Times of the wrong logins of each address, for as long as they count."""

    def __init__(self) -> None:
        self._times: OrderedDict[tuple[str, str | None], deque[float]] = OrderedDict()

    def check(self, address: str, name: str) -> None:
        """Raises TooManyFailures."""
        now = time.monotonic()
        for key, most in (((address, name), _FAILURES_OF_NAME), ((address, None), _FAILURES_OF_ADDRESS)):
            times = self._times.get(key, deque())
            while times and now - times[0] > _WINDOW_SECONDS:
                times.popleft()
            if len(times) >= most:
                raise TooManyFailures(int(_WINDOW_SECONDS - (now - times[0])) + 1)

    def add(self, address: str, name: str) -> None:
        for key in ((address, name), (address, None)):
            times = self._times.setdefault(key, deque(maxlen=_FAILURES_OF_ADDRESS))
            times.append(time.monotonic())
            self._times.move_to_end(key)
        while len(self._times) > _ADDRESSES:
            self._times.popitem(last=False)
