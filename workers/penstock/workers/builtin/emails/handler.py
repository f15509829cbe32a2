"""`email.send`: the job's outcome for each answer of the server."""

from __future__ import annotations

from datetime import timedelta

from penstock.config.errors import StorageError
from penstock.config.settings import Settings
from penstock.schemas.builtin.emails import EmailSent, Refusal, SendEmail
from penstock.workers.builtin.emails.addresses import mailbox, message_id
from penstock.workers.builtin.emails.content.message import compose, content_of, sender_of
from penstock.workers.builtin.emails.content.templating import Templates
from penstock.workers.builtin.emails.flattened import Mail
from penstock.workers.builtin.emails.mailers.mailer import Mailer, MailRefused, MailUnavailable
from penstock.workers.builtin.emails.mailers.replies import is_for_good
from penstock.workers.builtin.emails.recipients import NOT_ALLOWED, recipients_of, takers_of
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.registry import handles
from penstock.workers.handlers.returns import Discard, Permanent, Retry
from penstock.workers.handlers.storage import Storage, storage_of

PUT_OFF = timedelta(minutes=5)
"""Delay for recipients that a server put off while it accepted others; greylisting accepts mail after that."""


@handles(SendEmail)
def send_email(
    job: SendEmail, ctx: Context, mailer: Mailer, templates: Templates, storage: Storage, settings: Settings
) -> EmailSent | Retry | Discard:
    """Send one mail.

    SMTP cannot make this exactly once: if a worker dies, or the connection breaks, after the server took the mail and
    before that is recorded, the next attempt sends it again. Both copies have the same Message-ID, by which many
    receivers show one; a maildir folder takes only one.

    A server or storage out of reach, a reply for now (4xx), a limit of the account and a refused login are tried again,
    `[emails] unavailable_attempts` times; a mail that is wrong or refused for good `content_attempts` times. Where a
    server takes some recipients, the job succeeds and its result names the others; those it put off get a job of their
    own.

    Raises:
        Permanent: the last of these attempts failed.
    """
    emails = settings.emails
    try:
        return _send(job, ctx, mailer, templates, storage, settings)
    except (MailRefused, Permanent) as error:
        return _retry(error, ctx, emails.content_attempts, "content_attempts")
    except (MailUnavailable, StorageError) as error:
        return _retry(error, ctx, emails.unavailable_attempts, "unavailable_attempts")


def _send(
    job: SendEmail, ctx: Context, mailer: Mailer, templates: Templates, storage: Storage, settings: Settings
) -> EmailSent | Discard:
    content = content_of(job, templates, settings.emails)
    sender = sender_of(job, ctx.tenant, settings.emails)
    files, mail_id = storage_of(ctx.tenant, storage, settings), message_id(ctx.job_id, sender)
    recipients = recipients_of(job)
    takers = takers_of(recipients, settings.emails)
    if not takers:
        return Discard(f"allow of [emails] has none of its recipients: {', '.join(recipients)}")

    def build() -> Mail:
        ctx.check_cancelled()  # it may have waited for a connection past its timeout, and another attempt has it
        return compose(job, content, sender=sender, message_id=mail_id, storage=files, settings=settings.emails)

    delivered = mailer.deliver(build, mailbox(sender), tuple(takers))
    reached = {recipient for served in takers.values() for recipient in served}
    refused = {who: NOT_ALLOWED for who in recipients if who not in reached}
    refused |= {who: reply for taker, reply in delivered.refused.items() for who in takers[taker]}
    put_off = tuple(who for who, reply in refused.items() if not is_for_good(*reply))
    if put_off:
        ctx.enqueue(job.with_changes({"deliver_to": put_off}), delay=PUT_OFF, key=f"{ctx.job_id}:put-off")
    return EmailSent(
        message_id=mail_id,
        accepted=tuple(who for who in recipients if who not in refused),
        refused=tuple(Refusal(address=who, code=code, reason=reason) for who, (code, reason) in refused.items()),
        diverted=tuple(who for taker, served in takers.items() for who in served if who != taker),
        already_delivered=delivered.already,
    )


def _retry(error: Exception, ctx: Context, attempts: int, setting: str) -> Retry:
    """Retry for an error. Raises Permanent after so many attempts."""
    if ctx.attempt >= attempts:
        count = "" if attempts == 1 else f" (attempt {ctx.attempt} of {attempts}; see {setting} of [emails])"
        raise Permanent(f"{error}{count}") from error
    return Retry(getattr(error, "after", None), reason=str(error))
