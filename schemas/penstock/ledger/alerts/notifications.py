"""Notifications of alerts: jobs of `webhook.deliver` and `email.send`."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from penstock.config.sections.alerts import AlertSettings
from penstock.schemas.builtin.emails import SendEmail
from penstock.schemas.builtin.webhooks import DeliverWebhook
from penstock.schemas.wire.codec import Envelope, encode

BEGAN, ENDED = "alert.began", "alert.ended"
"""Types of the webhooks."""


class Notice(NamedTuple):
    """An onset or an end.

    Attributes:
        firing: id of the firing; the same at its onset and its end.
        subject: queue, kind, schedule or outbox; empty where the condition has none.
        ended_at: None: it began.
    """

    firing: str
    alert: str
    subject: str
    value: float | None
    detail: str
    began_at: datetime
    ended_at: datetime | None


def notifications(installation: str, settings: AlertSettings, notice: Notice) -> list[Envelope]:
    """The jobs for a notice: one for each hook, and one mail to all addresses.

    Arguments:
        installation: the setting `prefix`, which the mail's subject begins with.
    """
    at = notice.ended_at or notice.began_at
    data: dict[str, Any] = {
        "id": notice.firing,
        "alert": notice.alert,
        "when": settings.when,
        "subject": notice.subject or None,
        "detail": notice.detail,
        "value": notice.value,
        "above": settings.most if settings.above is not None else None,
        "began_at": notice.began_at.isoformat(),
        "ended_at": None if notice.ended_at is None else notice.ended_at.isoformat(),
    }
    type = BEGAN if notice.ended_at is None else ENDED
    envelopes = [
        encode(DeliverWebhook(hook=name, type=type, occurred_at=at, data=data), sent_at=at) for name in settings.hooks
    ]
    if settings.addresses:
        envelopes.append(encode(_mail(installation, settings, notice), sent_at=at))
    return envelopes


def _mail(installation: str, settings: AlertSettings, notice: Notice) -> SendEmail:
    state = "began" if notice.ended_at is None else "ended"
    about = f"{notice.alert} ({notice.subject})" if notice.subject else notice.alert
    lines = [
        notice.detail + ".",
        "",
        f"Alert {notice.alert} ({settings.when}) began {notice.began_at:%Y-%m-%d %H:%M:%SZ}"
        + ("." if notice.ended_at is None else f", and ended {notice.ended_at:%Y-%m-%d %H:%M:%SZ}."),
    ]
    if notice.ended_at is None:
        lines += ["", f"To hear no more of it for a while: penstock alerts silence {notice.alert} --for 2h"]
    # Names may come from anyone who can send to the broker; a control character would begin another header.
    subject = "".join(character if character.isprintable() else "?" for character in f"alert {state}: {about}")
    return SendEmail(to=settings.addresses, subject=f"[{installation}] {subject[:200]}", text="\n".join(lines) + "\n")
