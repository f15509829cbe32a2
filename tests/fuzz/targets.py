# ruff: noqa: PT017 - what an error must be is checked where it is caught, as not each input raises one
"""Everything that reads what strangers wrote, and what must hold of it whatever they write."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import hypothesis
import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from fuzz import strategies as generated
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from pydantic import BaseModel

from penstock.config.errors import (
    ConfigError,
    InvalidEvent,
    InvalidKey,
    InvalidToken,
    UndecodableMessage,
    WrongSignature,
)
from penstock.config.printable import printable
from penstock.config.sections.events import WebhookSettings
from penstock.config.sections.gateway import JwtSettings
from penstock.config.sections.values import read_size
from penstock.ledger.members import api_keys
from penstock.producers.gateway.auth.jwt import JwtVerifier
from penstock.producers.gateway.problems import Problem
from penstock.producers.storage import FileStorage
from penstock.producers.tokens import progress_token, read_token
from penstock.schemas import Job, Sensitive, upcasts
from penstock.schemas.events import cloudevents, signatures
from penstock.schemas.events.webhooks import read_webhook
from penstock.schemas.schedules.cron import Cron
from penstock.schemas.storage import check_key
from penstock.schemas.wire.codec import Envelope, decode
from penstock.workers.brokers.stock.messages import read_dramatiq, read_kombu

NOW = 1_800_000_000
SECRET = "the secret of the fuzzer"
WEBHOOK_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
REASONS = {"undecodable", "unknown_kind", "invalid_payload", "unknown_version"}


class Line(BaseModel):
    price: Decimal


class Everything(Job, kind="fuzz.everything", queue="fuzz", version=2, aliases=("fuzz.former",)):
    number: int = 0
    text: str = ""
    day: date = date(2026, 1, 1)
    lines: tuple[Line, ...] = ()
    extra: dict[str, Any] = {}  # noqa: RUF012  # pydantic copies it
    password: Sensitive[str] = ""


@upcasts(Everything, from_version=1)
def _rename(payload: dict[str, Any]) -> dict[str, Any]:
    return {"number": payload["count"]}


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        check: called with a value of each strategy; raises if what must hold does not.
    """

    name: str
    check: Callable[..., None]
    strategies: tuple[st.SearchStrategy[Any], ...]

    def fuzz(self, examples: int, seed: int | None = None) -> None:
        """Check generated input.

        Arguments:
            seed: None: the same input each time.
        """
        run = hypothesis.given(*self.strategies)(self.check)
        run = hypothesis.settings(
            max_examples=examples,
            derandomize=seed is None,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        )(run)
        (run if seed is None else hypothesis.seed(seed)(run))()


TARGETS: list[Target] = []


def target(*strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a check as a target, by its name."""

    def register(check: Callable[..., None]) -> Callable[..., None]:
        TARGETS.append(Target(check.__name__.replace("_", " "), check, strategies))
        return check

    return register


def _decodes(envelope: Envelope) -> None:
    try:
        message = decode(envelope)
    except UndecodableMessage as error:
        assert error.reason in REASONS
        assert error.detail
    else:
        assert isinstance(message.job, Everything)


@target(generated.HEADERS, generated.WIRE_BODIES)
def messages_of_protocol_2(headers: dict[str, Any], body: bytes) -> None:
    _decodes(Envelope("fuzz", "normal", json.loads(json.dumps(headers)), body))


@target(generated.KOMBU)
def messages_of_celery_clients_on_redis(raw: bytes) -> None:
    _decodes(read_kombu("fuzz", raw))


@target(generated.HEADERS, generated.PROTOCOL_1.map(generated.document))
def messages_of_protocol_1(headers: dict[str, Any], body: bytes) -> None:
    _decodes(Envelope("fuzz", "normal", headers, body))


@target(generated.DRAMATIQ)
def messages_of_dramatiq_clients(raw: bytes) -> None:
    try:
        envelope = read_dramatiq("fuzz", raw)
    except UndecodableMessage as error:
        assert error.reason == "undecodable"
    else:
        _decodes(envelope)


@target(generated.EVENT_HEADERS, generated.EVENT_BODIES)
def cloudevents_of_requests(headers: dict[str, str], body: bytes) -> None:
    with contextlib.suppress(InvalidEvent):
        for event in cloudevents.parse(headers, body):
            if isinstance(event, cloudevents.Event):
                json.dumps(event.document()).encode()


@target(
    st.dictionaries(
        st.sampled_from([*("webhook-id", "webhook-timestamp", "webhook-signature", "stripe-signature")])
        | st.sampled_from(["x-hub-signature-256", "authorization"]),
        generated.TEXTS
        | st.sampled_from([str(NOW), "v1,AAAA", "v1,é v2,x", f"t={NOW},v1=00", "sha256=00", "sha256=é", "Bearer é"]),
    ),
    st.binary(max_size=40),
)
def signatures_without_the_secret(headers: dict[str, str], body: bytes) -> None:
    for verify in (
        lambda: signatures.verify_standard(headers, body, [WEBHOOK_SECRET], now=NOW, tolerance=300),
        lambda: signatures.verify_stripe(headers, body, [SECRET], now=NOW, tolerance=300),
        lambda: signatures.verify_github(headers, body, [SECRET]),
        lambda: signatures.verify_bearer(headers, [SECRET]),
    ):
        try:
            verify()
        except WrongSignature:
            continue
        raise AssertionError(f"{headers} verified {body!r}")


@target(st.binary(max_size=40), st.integers(0, 39), st.integers(1, 255))
def signatures_of_changed_bodies(body: bytes, place: int, change: int) -> None:
    signed = signatures.sign(WEBHOOK_SECRET, "msg_1", NOW, body)
    assert signatures.verify_standard(signed, body, [WEBHOOK_SECRET], now=NOW, tolerance=300) == "msg_1"
    changed = bytearray(body or b"\0")
    changed[place % len(changed)] ^= change
    with contextlib.suppress(WrongSignature):
        signatures.verify_standard(signed, bytes(changed), [WEBHOOK_SECRET], now=NOW, tolerance=300)
        raise AssertionError("a changed body was verified")


@target(
    st.sampled_from(["standard", "github", "stripe", "bearer"]), generated.WEBHOOK_HEADERS, generated.WEBHOOK_BODIES
)
def webhooks_of_a_sender_with_the_secret(scheme: Any, more: dict[str, str], body: bytes) -> None:
    digest = hmac.digest(SECRET.encode(), body, hashlib.sha256).hex()
    stripe = hmac.digest(SECRET.encode(), f"{NOW}.".encode() + body, hashlib.sha256).hex()
    headers = {
        **signatures.sign(WEBHOOK_SECRET, "msg_1", NOW, body),
        "x-hub-signature-256": f"sha256={digest}",
        "stripe-signature": f"t={NOW},v1={stripe}",
        "authorization": f"Bearer {SECRET}",
        **more,
    }
    secret = WEBHOOK_SECRET if scheme == "standard" else SECRET
    settings = WebhookSettings(scheme=scheme, secret=secret)
    with contextlib.suppress(InvalidEvent):
        for event in read_webhook("shop", settings, [secret], headers, body, now=NOW, storage_url="s3://penstock"):
            json.dumps(event.document()).encode()


@target(generated.CRON_RULES, st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe"]))
def cron_rules(rule: str, zone: str) -> None:
    try:
        cron = Cron(rule, ZoneInfo(zone))
    except ConfigError as error:
        assert "cron" in str(error)
        return
    times = list(islice(cron.after(datetime(2026, 3, 28, tzinfo=UTC)), 3))
    assert times == sorted(set(times))


@target(generated.STORAGE_KEYS)
def storage_keys(key: str) -> None:
    try:
        assert check_key(key) == key
    except InvalidKey:
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve() / "storage"
        FileStorage(folder).write(key, io.BytesIO(b"x"))
        [written] = [path for path in Path(temporary).rglob("*") if path.is_file()]
        assert written.resolve().is_relative_to(folder)
        with FileStorage(folder).read(key) as stored:
            assert stored.read() == b"x"


@target(st.text() | st.text().map(lambda text: f"{progress_token('a-job', secret=SECRET)}{text}"))
def browsers_tokens(text: str) -> None:
    try:
        token = read_token(text, secret=SECRET)
    except InvalidToken:
        return
    assert (token.job_id, token.verbs) == ("a-job", ("read",))
    assert text.startswith(progress_token("a-job", secret=SECRET).partition(".")[0][:8])


@target(st.text() | st.text(max_size=60).map(lambda text: f"psk_0123456789ab_{text}"))
def api_keys_by_their_form(text: str) -> None:
    identifier = api_keys.id_of(text)
    assert identifier is None or (text.isascii() and len(text) == 60)


class _Provider:
    """The keys of an identity provider, without a server: one key, and then none."""

    def __init__(self) -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())
        numbers = self.private.public_key().public_numbers()
        x, y = (base64.urlsafe_b64encode(n.to_bytes(32, "big")).rstrip(b"=").decode() for n in (numbers.x, numbers.y))
        self.key = jwt.PyJWK({"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": "one", "use": "sig"})

    async def find(self, key_id: str) -> jwt.PyJWK | None:
        return self.key if key_id == "one" else None


PROVIDER = _Provider()
_JWT_HEADERS = generated.almost(
    alg=st.sampled_from(["ES256", "none", "HS256", "RS256"]),
    kid=st.just("one"),
    typ=st.just("JWT"),
    b64=st.just(False),
    crit=st.just(["b64"]),
)
_CLAIMS = generated.almost(
    iss=st.just("https://login.example.com"),
    aud=st.just("penstock"),
    sub=st.just("ada"),
    exp=st.just(NOW * 2),
    nbf=st.just(0),
    iat=st.just(0),
    penstock=generated.JSON,
)


def _segment(value: Any) -> str:
    return (
        base64.urlsafe_b64encode(value if isinstance(value, bytes) else generated.document(value)).decode().rstrip("=")
    )


def _verify(token: str) -> dict[str, Any]:
    """Claims of a token. Raises Problem."""
    verifier = JwtVerifier(
        JwtSettings(jwks_url="https://127.0.0.1:1/", issuer="https://login.example.com", audience="penstock")
    )
    verifier.close()
    verifier._keys = PROVIDER  # type: ignore[assignment]
    return asyncio.run(verifier.verify(token))


@target(
    st.text()
    | st.tuples(_JWT_HEADERS | generated.BODIES, _CLAIMS | generated.BODIES, st.binary(max_size=70)).map(
        lambda parts: ".".join(map(_segment, parts))
    )
)
def forged_jwts(token: str) -> None:
    try:
        claims = _verify(token)
    except Problem as problem:
        assert problem.status_code == 401
        return
    raise AssertionError(f"{token} passed as {claims}")


@target(_JWT_HEADERS, _CLAIMS)
def signed_jwts_with_odd_claims(header: dict[str, Any], claims: dict[str, Any]) -> None:
    signing_input = f"{_segment(header)}.{_segment(claims)}"
    signature = jwt.get_algorithm_by_name("ES256").sign(signing_input.encode(), PROVIDER.private)
    try:
        verified = _verify(f"{signing_input}.{_segment(signature)}")
    except Problem as problem:
        assert problem.status_code == 401
        return
    assert (verified["iss"], verified["aud"]) == ("https://login.example.com", "penstock") or "penstock" in verified[
        "aud"
    ]
    assert isinstance(verified["sub"], str)


@target(generated.SIZES)
def sizes(value: Any) -> None:
    with contextlib.suppress(ValueError):
        assert read_size(value) >= 0


@target(st.text() | st.text("\x1b\r\n\t\u202e\x9b[]0;ab"))
def text_for_terminals_and_logs(text: str) -> None:
    shown_text = printable(text)
    assert not any(character in shown_text for character in "\x1b\x9b\r\n\u202e\0\x7f")
    shown_text.encode()
