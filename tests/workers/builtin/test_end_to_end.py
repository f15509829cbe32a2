from __future__ import annotations

import email
import email.policy
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import create_engine, text
from support.builtin.servers import Api
from support.builtin.tools import put, settings
from support.polling import until

from penstock.producers.storage import FileStorage
from penstock.schemas.builtin.emails import SendEmail
from penstock.schemas.builtin.reports import BuildReport
from penstock.schemas.builtin.syncs import RunSync
from penstock.schemas.builtin.uploads import ProcessUpload
from penstock.workers import builtin  # noqa: F401  # registers the four
from penstock.workers.engines.inline import Inline
from penstock.workers.handlers.registry import handlers


def test_everything_the_handlers_ask_for_is_provided():
    handlers.check()


def test_the_four_run_on_a_worker_and_one_leads_to_the_next(tmp_path: Path, api: Api):
    storage = FileStorage(tmp_path / "storage")
    image = tmp_path / "photo.jpg"
    Image.new("RGB", (600, 400), "green").save(image)
    put(storage, "incoming/photo", image.read_bytes())
    configured = settings(
        database_url=f"sqlite:///{tmp_path}/ledger.db",
        storage_url=f"file:{tmp_path}/storage",
        smtp_url=f"maildir:{tmp_path}/mail",
        syncs={
            "orders": {
                "url": api.url,
                "items": "data",
                "next_cursor": "meta.next",
                "table": "orders",
                "columns": {"total": {"type": "decimal", "path": "amount.total"}},
            }
        },
        reports={"totals": {"sql": "SELECT id, total FROM orders ORDER BY id"}},
    )
    with Inline(configured) as penstock:
        enqueue = penstock.producer.enqueue
        upload = enqueue(ProcessUpload(key="incoming/photo"))
        sync = enqueue(RunSync(sync="orders"))
        mail = enqueue(SendEmail(to="a@example.com", template="welcome", variables={"product": "Penstock"}))
        assert upload.wait(60).state == "succeeded"
        assert mail.wait(60).state == "succeeded"
        assert sync.wait(60).state == "succeeded"
        report = enqueue(BuildReport(report="totals", format="xlsx", email_to="boss@example.com"))
        assert report.wait(60).state == "succeeded"
        refused = enqueue(ProcessUpload(key="incoming/nothing"))
        assert refused.wait(60).state == "dead"
        until(lambda: len(list((tmp_path / "mail" / "new").iterdir())) >= 2, "both mails")
        mails = sorted((tmp_path / "mail" / "new").iterdir())
    subjects = {email.message_from_bytes(mail.read_bytes(), policy=email.policy.default)["Subject"] for mail in mails}
    assert subjects == {"Welcome", "Your report is ready: totals"}
    engine = create_engine(configured.database_url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT COUNT(*) FROM orders")).scalar() == 8
    engine.dispose()
    assert len(list((tmp_path / "storage" / "reports").rglob("*.xlsx"))) == 1
    assert len(list((tmp_path / "storage" / "uploads").rglob("thumb-*.webp"))) == 2


def test_the_example_configuration_describes_the_built_in_workers_rightly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from penstock.config.settings import load_settings

    example = Path(__file__).parents[3] / "config" / "penstock.toml"
    lines = [
        line.removeprefix("#") if line.startswith("#") and line[1:2] not in ("", " ") else line
        for line in example.read_text().splitlines()
    ]
    (tmp_path / "penstock.toml").write_text("\n".join(lines))
    loaded = load_settings(tmp_path / "penstock.toml")
    assert loaded.reports["daily_sales"].parameters["day"].relative
    assert loaded.syncs["orders"].columns["total"].path == "amount.total"
    assert loaded.emails.sender == "Shop <shop@example.com>"
    assert loaded.uploads == type(loaded.uploads)()
