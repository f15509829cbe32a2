"""The mail about a report that is ready: with the file, or a link to it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from penstock.config.sections.builtin.reports import ReportSettings
from penstock.config.settings import Settings
from penstock.schemas.builtin.emails import Attachment, SendEmail
from penstock.schemas.builtin.reports import BuildReport, ReportBuilt
from penstock.schemas.storage import Storage
from penstock.workers.builtin.reports.files import media_type_of
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.returns import Permanent


def check_delivery(job: BuildReport, storage: Storage) -> None:
    """Refuse a link that no recipient could follow, before the query runs.

    Raises:
        Permanent: the storage is a folder.
    """
    if (
        job.email_to
        and job.email_as == "link"
        and _link(storage, storage.root + "report", timedelta(seconds=1)) is None
    ):
        raise Permanent(
            f"report {job.report!r}: email_as is 'link', but storage_url is a folder, whose files have no links; use "
            "'attachment', or a storage on S3"
        )


def mail_report(
    job: BuildReport, ctx: Context, report: ReportSettings, result: ReportBuilt, storage: Storage, settings: Settings
) -> None:
    """Send the mail, once the job has succeeded.

    Without `email_as`, a storage on S3 is linked to, and the file of a folder is attached. One that is too large to be
    attached is named by its key.

    Raises:
        Permanent: it must be attached, and is too large.
    """
    lifetime = timedelta(seconds=report.link_expires_seconds)
    limit = settings.emails.max_attachment_bytes
    link = None if job.email_as == "attachment" else _link(storage, result.key, lifetime)
    attached = link is None and result.size <= limit
    if job.email_as == "attachment" and not attached:
        raise Permanent(
            f"report {job.report!r}: its file of {result.size} bytes is too large to be attached; it is in the storage "
            f"at {result.key}; raise [emails] max_attachment_bytes ({limit}), or use email_as 'link' with S3"
        )
    media_type = media_type_of(job).partition(";")[0]
    mail = SendEmail(
        to=job.email_to or (),
        template="report_ready",
        variables={
            "title": report.title or job.report,
            "report": job.report,
            "format": result.format,
            "rows": result.rows,
            "cut_cells": result.cut_cells,
            "link": link or "",
            "attached": attached,
            "key": result.key,
            "expires": None if link is None else f"{datetime.now(UTC) + lifetime:%Y-%m-%d %H:%M} UTC",
        },
        attachments=(Attachment(key=result.key, media_type=media_type),) if attached else (),
    )
    ctx.enqueue(mail, key=f"{ctx.job_id}:report-ready")


def _link(storage: Storage, key: str, lifetime: timedelta) -> str | None:
    """A link to an object; None: the storage is a folder, which only this machine can read."""
    link = storage.link(key, lifetime)
    return None if link.startswith("file:") else link
