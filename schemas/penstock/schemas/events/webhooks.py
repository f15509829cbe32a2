"""Incoming webhooks as events: Standard Webhooks, GitHub, Stripe, and the notifications of S3."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_plus, urlsplit

from pydantic import ValidationError
from pydantic_core import from_json

from penstock.config.errors import InvalidEvent
from penstock.config.sections.events import WebhookSettings
from penstock.schemas.events import signatures
from penstock.schemas.events.cloudevents import Event
from penstock.schemas.wire.codec import explain


def read_webhook(
    name: str,
    settings: WebhookSettings,
    secrets: list[str],
    headers: Mapping[str, str],
    body: bytes,
    *,
    now: float,
    storage_url: str,
) -> list[Event]:
    """Request → events, once its sender is verified. Their source is `/webhooks/NAME`, except for S3.

    Arguments:
        headers: by their lower-case names.
        now: in seconds since 1970.
        storage_url: the setting of that name; see `s3`.

    Raises:
        WrongSignature: the request is not from this sender, or is too old.
        InvalidEvent: the body does not have the sender's format.
    """
    source = f"/webhooks/{name}"
    digest = hashlib.sha256(body).hexdigest()
    match settings.scheme:
        case "standard":
            tolerance = settings.tolerance_seconds
            id = signatures.verify_standard(headers, body, secrets, now=now, tolerance=tolerance)
            data = _object(body)
            time = datetime.fromtimestamp(int(headers[signatures.TIMESTAMP]), UTC).isoformat()
            return [_event(id=id, source=source, type=data.get("type", name), time=time, data=data)]
        case "github":
            signatures.verify_github(headers, body, secrets)
            data = _object(body)
            # The id that GitHub sends is not signed: an attacker could replay an old request under another id.
            more = {"delivery": headers["x-github-delivery"]} if "x-github-delivery" in headers else {}
            return [_event(id=digest, source=source, type=_github_type(headers, data), data=data, **more)]
        case "stripe":
            signatures.verify_stripe(headers, body, secrets, now=now, tolerance=settings.tolerance_seconds)
            data = _object(body)
            return [_event(id=data.get("id", digest), source=source, type=data.get("type", name), data=data)]
        case "bearer":
            signatures.verify_bearer(headers, secrets)
            data = _object(body)
            if "Records" in data or data.get("Event") == "s3:TestEvent":
                return list(s3(data, storage_url))
            return [_event(id=data.get("id", digest), source=source, type=data.get("type", name), data=data)]


def signed_content(settings: WebhookSettings, headers: Mapping[str, str], body: bytes) -> str | None:
    """Hash of the signed content, which a request shares with its replays only. None: the scheme signs nothing.

    It cannot be changed without the secret. A sender that tries again makes a new signature, with another time. GitHub
    signs no time; its delivery number, which a redelivery keeps, is not signed either.

    Arguments:
        headers, body: of a request that `read_webhook` has accepted.
    """
    match settings.scheme:
        case "standard":
            prefix = f"{headers[signatures.ID]}.{headers[signatures.TIMESTAMP]}"
        case "github":
            prefix = headers.get("x-github-delivery", "")
        case "stripe":
            prefix = signatures.stripe_time(headers)
        case "bearer":
            return None
    return hashlib.sha256(prefix.encode() + b"." + body).hexdigest()


def s3(document: Mapping[str, Any], storage_url: str) -> Iterator[Event]:
    """Notification of S3, or of a compatible store → events; a test notification has none.

    Type, source and subject are those of CloudEvents' adapter for S3: `com.amazonaws.s3.ObjectCreated:Put`,
    `aws:s3.REGION.BUCKET` (of other stores `minio:s3.…`) and the object's key. `data` has `bucket`, `key`, `size`,
    `etag` and `version_id`, and `storage_key`, what the storage of the settings calls the object, if it is in there.
    https://github.com/cloudevents/spec/blob/main/cloudevents/adapters/aws-s3.md

    Raises:
        InvalidEvent: it is not a notification of S3.
    """
    storage = urlsplit(storage_url)
    records = document.get("Records", [])
    if not isinstance(records, list):
        raise InvalidEvent("Records", "not a list")
    for number, record in enumerate(records):
        try:
            bucket, entry = record["s3"]["bucket"]["name"], record["s3"]["object"]
            key = unquote_plus(entry["key"])
            name = str(record["eventName"]).removeprefix("s3:")
            time = record["eventTime"]
            service = record["eventSource"]
        except (LookupError, TypeError) as error:
            raise InvalidEvent(f"Records.{number}", f"not a notification of S3: {error!r}") from None
        elements = record.get("responseElements") or {}
        request = elements.get("x-amz-request-id", "") if isinstance(elements, Mapping) else ""
        data = {"bucket": bucket, "key": key, "size": entry.get("size"), "etag": entry.get("eTag")}
        data["version_id"] = entry.get("versionId")
        prefix = storage.path.strip("/") + "/" if storage.path.strip("/") else ""
        if storage.scheme == "s3" and storage.netloc == bucket and key.startswith(prefix):
            data["storage_key"] = key.removeprefix(prefix)
        # A notification may come twice; the sequencer is different for each change of an object.
        identity = (name, bucket, key, entry.get("versionId"), entry.get("sequencer") or request or time)
        yield _event(
            id=hashlib.sha256(repr(identity).encode()).hexdigest(),
            source=f"{service}.{record.get('awsRegion') or 'none'}.{bucket}",
            type=f"com.amazonaws.s3.{name}",
            subject=key,
            time=time,
            data=data,
        )


def _github_type(headers: Mapping[str, str], data: Mapping[str, Any]) -> str:
    """`com.github.push`, `com.github.pull_request.opened`, as CloudEvents' adapter for GitHub names them."""
    if not (event := headers.get("x-github-event")):
        raise InvalidEvent("x-github-event", "the header is missing")
    action = data.get("action")
    return f"com.github.{event}.{action}" if isinstance(action, str) and action else f"com.github.{event}"


def _object(body: bytes) -> dict[str, Any]:
    try:
        document = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidEvent("the body", f"not JSON: {error}; have it sent as application/json") from None
    if not isinstance(document, dict):
        raise InvalidEvent("the body", "not a JSON object")
    return document


def _event(**values: Any) -> Event:
    try:
        return Event.model_validate({"specversion": "1.0", "datacontenttype": "application/json", **values})
    except ValidationError as error:
        raise InvalidEvent("the body", explain(error)) from None
