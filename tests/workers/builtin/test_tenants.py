"""A tenant attacks another through the built-in kinds, with `tenant=` in Python and with its key at the gateway."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, text
from support.builtin.servers import Api
from support.builtin.tools import get, listing, put
from support.gateways import SECRET
from support.ledgers import set_up
from support.polling import WAIT_SECONDS, until

from penstock.config.settings import Settings
from penstock.ledger.members import api_keys
from penstock.ledger.queries.status import JobStatus
from penstock.ledger.sql.database import Database
from penstock.producers import Producer
from penstock.producers.gateway import create_app
from penstock.producers.gateway.server import Server
from penstock.producers.storage import FileStorage
from penstock.schemas import Job
from penstock.schemas.builtin.emails import SendEmail
from penstock.schemas.builtin.reports import BuildReport
from penstock.schemas.builtin.syncs import RunSync
from penstock.schemas.builtin.uploads import ProcessUpload
from penstock.schemas.builtin.webhooks import DeliverWebhook
from penstock.workers import builtin, handles
from penstock.workers.engines.worker import Worker
from penstock.workers.local.up.redis_server import RedisServer

assert builtin  # imported for its handlers
SECRET_TEXT = b"the accounts of the other tenant"
OTHERS = "tenants/other/secret.txt"
MAIL = {"to": "thief@example.com", "subject": "loot", "text": "here"}


class Large(Job, kind="tenants.large", queue="tenants"):
    length: int


@handles(Large)
def make_large(job: Large) -> str:
    return "x" * job.length


class Site:
    """A worker and a gateway over one Redis, with the objects and rows of two tenants, `acme` and `other`."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.storage = FileStorage(folder / "storage")
        self.database = Database(settings.database_url)
        self.producer = Producer.from_settings(settings)
        queues = ["emails", "reports", "syncs", "uploads", "webhooks", "tenants"]
        self.worker = Worker(settings, engine="inline", queues=queues, concurrency=10)
        self.server = Server(create_app(settings), address="127.0.0.1", port=0)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def start(self) -> None:
        self.worker.start()
        self.thread.start()
        until(lambda: self.server.started, "the gateway", unless=lambda: not self.thread.is_alive() and "it ended")
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_SECONDS)

    def stop(self) -> None:
        self.client.close()
        self.server.stop()
        self.thread.join()
        self.worker.stop(0)
        self.producer.close()
        self.database.close()

    def key(self, tenant: str) -> dict[str, str]:
        token, _key = api_keys.add(self.database, "test", kinds=["*"], tenants=[tenant])
        return {"Authorization": f"Bearer {token}"}

    def run(self, job: Job, tenant: str | None, way: str = "python") -> JobStatus:
        """The job's end."""
        if way == "python":
            job_id = self.producer.enqueue(job, tenant=tenant).id
        else:
            assert tenant is not None
            path = f"/v1/jobs/{job.kind().name}"
            answer = self.client.post(path, json=job.model_dump(mode="json"), headers=self.key(tenant))
            assert answer.status_code in (201, 202), answer.text
            job_id = answer.json()["id"]
        return self.producer.handle(job_id).wait(WAIT_SECONDS)

    def refused(self, job: Job, tenant: str | None, way: str = "python") -> str:
        """The reason why the job is a dead letter."""
        status = self.run(job, tenant, way)
        assert status.state == "dead", status
        assert status.attempt <= 1  # 0 where it is refused before it runs
        return str(status.error)

    def done(self, job: Job, tenant: str | None, way: str = "python") -> Any:
        status = self.run(job, tenant, way)
        assert status.state == "succeeded", status.error
        return status.result

    def mails(self) -> list[str]:
        return [path.read_text() for path in sorted((self.folder / "mail" / "new").glob("*"))]


@pytest.fixture(scope="module")
def site(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("tenants")
    shop = f"sqlite:///{folder}/shop.db"
    engine = create_engine(shop)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE sales (id INTEGER, tenant VARCHAR(80), amount INTEGER)"))
        connection.execute(text("INSERT INTO sales VALUES (1, 'acme', 10), (2, 'other', 999), (3, 'acme', 11)"))
    engine.dispose()
    api = Api()
    api.add(3)
    source: dict[str, Any] = {"items": "data", "next_cursor": "meta.next", "database_url": shop}
    settings = Settings(
        unknown_kind_grace=timedelta(),  # a sync that is missing waits for no other worker
        broker_url=redis_server.url,
        database_url=set_up(f"sqlite:///{folder}/ledger.db"),
        storage_url=f"file:{folder}/storage",
        smtp_url=f"maildir:{folder}/mail",
        prefix=f"t{uuid.uuid4().hex[:10]}",
        token_secret=SECRET,
        max_result_bytes_inline=1000,
        emails={
            "from": "Shop <shop@example.com>",
            "senders": {
                "acme": ["Acme <sales@acme.example>", "help@acme.example"],
                "other": "sales@other.example",
                "*": "{tenant}@mail.example.com",
            },
        },
        reports={
            "all": {"sql": "SELECT id, amount FROM sales", "database_url": shop},
            "own": {
                "sql": "SELECT id, amount FROM sales WHERE tenant = :tenant AND amount > :least ORDER BY id",
                "parameters": {"least": {"type": "int", "default": 0}},
                "database_url": shop,
            },
            "others": {"sql": "SELECT id FROM sales WHERE tenant = 'other'", "tenants": "other", "database_url": shop},
            "public": {"sql": "SELECT COUNT(*) AS sales FROM sales", "tenants": ["*"], "database_url": shop},
        },
        syncs={
            "all": {**source, "url": api.url, "table": "orders"},
            "others": {**source, "url": api.url, "table": "others_orders", "tenants": ["other"]},
            "own": {
                **source,
                "url": f"{api.url}?since={{tenant}}",
                "params": {"of": "{tenant}"},
                "table": "of_{tenant}",
            },
        },
        hooks={
            "others": {"url": "https://127.0.0.1:9/", "secret": "whsec_c2VjcmV0", "tenants": ["other"], "states": []},
            "shop": {"url": "https://127.0.0.1:9/", "secret": "whsec_c2VjcmV0", "states": []},
        },
    )
    site = Site(settings, folder)
    put(site.storage, OTHERS, SECRET_TEXT)
    put(site.storage, "tenants/acme/own.txt", b"our own")
    put(site.storage, "tenants/acme2/next.txt", b"a neighbour's")
    put(site.storage, "incoming/shared.txt", b"of no tenant")
    site.start()
    yield site
    site.stop()
    api.stop()


ways = pytest.mark.parametrize("way", ["python", "gateway"])


@ways
def test_a_tenant_cannot_mail_itself_an_object_of_another(site: Site, way: str) -> None:
    before = site.mails()
    error = site.refused(SendEmail(**MAIL, attachments=[{"key": OTHERS}]), "acme", way)
    assert OTHERS in error
    assert "'acme'" in error
    assert "tenant_storage_prefix" in error
    assert site.mails() == before
    site.done(SendEmail(**MAIL, attachments=[{"key": "tenants/acme/own.txt"}]), "acme", way)
    assert 'filename="own.txt"' in site.mails()[-1] or any('filename="own.txt"' in mail for mail in site.mails())


@ways
def test_a_tenant_cannot_read_an_object_of_another_as_an_upload(site: Site, way: str) -> None:
    before = listing(site.storage.folder)
    assert "'acme'" in site.refused(ProcessUpload(key=OTHERS), "acme", way)
    assert listing(site.storage.folder) == before


@pytest.mark.parametrize(
    "key",
    [
        "incoming/shared.txt",
        "tenants/acme2/next.txt",
        "tenants/acme",
        "tenants/acme/",
        "tenants/acme/../other/secret.txt",
        "tenants/acme//../other/secret.txt",
        "tenants//other/secret.txt",
        "/tenants/other/secret.txt",
        "./tenants/other/secret.txt",
        "tenants/acme/..\\other\\secret.txt",
        "tenants/acme/%2e%2e/other/secret.txt",
        "tenants/acme/%252E%252e/other/secret.txt",
        "tenants/acme/..%2fother%2fsecret.txt",
        "tenants/acme/%2Fother/secret.txt",
        "tenants/%61cme/own.txt",
        "TENANTS/acme/own.txt",
        "tenants/Acme/own.txt",
    ],
)
def test_no_spelling_of_a_key_leads_out_of_the_folder_of_a_tenant(site: Site, key: str) -> None:
    put(site.storage, "tenants/Acme/own.txt", b"of a tenant whose name differs in case")
    assert repr(key) in site.refused(ProcessUpload(key=key), "acme")


@ways
def test_uploads_of_the_same_bytes_are_apart_and_none_is_overwritten(site: Site, way: str) -> None:
    results = {}
    for tenant in ("acme", "other", "a/b"):
        folder = {"a/b": "a%2Fb"}.get(tenant, tenant)
        put(site.storage, f"tenants/{folder}/same.txt", f"the same {way}".encode())
        before = listing(site.storage.folder)
        results[tenant] = site.done(ProcessUpload(key=f"tenants/{folder}/same.txt"), tenant, way)
        assert results[tenant]["original"].startswith(f"tenants/{folder}/uploads/sha256/")
        assert before.items() <= listing(site.storage.folder).items()
    assert len({result["metadata"] for result in results.values()}) == 3


def test_metadata_that_a_tenant_wrote_itself_leads_to_nothing_of_another(site: Site) -> None:
    put(site.storage, "tenants/acme/forged.txt", b"forged")
    result = site.done(ProcessUpload(key="tenants/acme/forged.txt"), "acme")
    forged = get(site.storage, result["metadata"]).replace(result["original"].encode(), OTHERS.encode())
    put(site.storage, result["metadata"], forged)
    assert site.done(ProcessUpload(key="tenants/acme/forged.txt"), "acme") == result


@ways
def test_a_report_has_the_rows_of_its_tenant_alone(site: Site, way: str) -> None:
    result = site.done(BuildReport(report="own"), "acme", way)
    assert result["key"].startswith("tenants/acme/reports/own/")
    assert get(site.storage, result["key"]).split() == [b"id,amount", b"1,10", b"3,11"]
    assert site.done(BuildReport(report="own", parameters={"least": 10}), "other", way)["rows"] == 1
    assert site.done(BuildReport(report="own"), "' OR 1=1 --", way)["rows"] == 0


@ways
@pytest.mark.parametrize("value", ["other", "acme", None])
def test_a_payload_cannot_name_the_tenant_of_a_report(site: Site, way: str, value: str | None) -> None:
    job = BuildReport(report="own", parameters={"tenant": value})
    assert "'tenant' is not a parameter" in site.refused(job, "acme", way)


@ways
def test_a_tenant_builds_no_report_of_all_or_of_another(site: Site, way: str) -> None:
    for name in ("all", "others"):
        error = site.refused(BuildReport(report=name), "acme", way)
        assert f"[reports.{name}]" in error
        assert ":tenant" in error
    assert "there is: own, public" in site.refused(BuildReport(report="missing"), "acme", way)
    assert site.done(BuildReport(report="others"), "other", way)["rows"] == 1
    assert site.done(BuildReport(report="public"), "acme", way)["rows"] == 1


@ways
def test_a_tenant_runs_no_sync_of_all_or_of_another(site: Site, way: str) -> None:
    for name in ("all", "others"):
        assert f"[syncs.{name}]" in site.refused(RunSync(sync=name), "acme", way)
    assert "there is: own" in site.refused(RunSync(sync="missing"), "acme", way)
    assert site.done(RunSync(sync="others", full=True), "other", way)["fetched"] == 3


@ways
def test_each_tenant_has_a_source_a_table_and_a_position_of_its_own(site: Site, way: str) -> None:
    for tenant in ("acme", "other"):
        assert site.done(RunSync(sync="own", full=True), tenant, way)["sync"] == "own"
    engine = create_engine(site.settings.reports["all"].database_url or "")
    with closing(engine.connect()) as connection:
        assert connection.execute(text("SELECT COUNT(*) FROM of_acme")).scalar() == 3
        assert connection.execute(text("SELECT COUNT(*) FROM of_other")).scalar() == 3
        positions = connection.execute(text("SELECT name FROM penstock_sync_cursors")).scalars().all()
        assert {"own:acme", "own:other"} <= set(positions)
    engine.dispose()


@pytest.mark.parametrize(
    "tenant", ["..", "other/", "Other", "a" * 64, "x;DROP TABLE sales", "o\u0308", "other?since=x"]
)
def test_a_name_that_could_be_mistaken_for_another_is_in_no_url_table_or_address(site: Site, tenant: str) -> None:
    assert "does not fit" in site.refused(RunSync(sync="own"), tenant)
    assert "does not fit" in site.refused(SendEmail(**MAIL), tenant)


@ways
@pytest.mark.parametrize(
    "sender", ["sales@other.example", "shop@example.com", "acme@mail.example.com", "x@acme.example"]
)
def test_a_tenant_cannot_send_from_the_address_of_another(site: Site, way: str, sender: str) -> None:
    before = site.mails()
    error = site.refused(SendEmail(**MAIL, sender=sender), "acme", way)
    assert repr(sender) in error
    assert "sales@acme.example, help@acme.example" in error
    assert site.mails() == before


def test_a_tenant_sends_from_its_own_addresses(site: Site) -> None:
    for tenant, sender, address in [
        ("acme", None, "Acme <sales@acme.example>"),
        ("acme", "help@ACME.example", "help@acme.example"),
        ("third", None, "third@mail.example.com"),
        (None, None, "Shop <shop@example.com>"),
        (None, "any@example.com", "any@example.com"),
    ]:
        before = set(site.mails())
        site.done(SendEmail(**MAIL, sender=sender), tenant)
        (mail,) = set(site.mails()) - before
        assert f"From: {address}\n" in mail


@ways
def test_a_large_result_is_not_an_attachment_of_another_tenant(site: Site, way: str) -> None:
    large = site.run(Large(length=5000), "other", way)
    assert large.state == "succeeded"
    (ref,) = [name for name in listing(site.storage.folder) if name.startswith(f"results/{large.id}/")]
    assert ref in site.refused(SendEmail(**MAIL, attachments=[{"key": ref}]), "acme", way)
    assert site.client.get(f"/v1/jobs/{large.id}", headers=site.key("acme")).status_code == 404
    assert site.client.get(f"/v1/jobs/{large.id}", headers=site.key("other")).json()["result"] == "x" * 5000


def test_the_dead_letter_of_a_tenant_is_not_shown_to_another(site: Site) -> None:
    status = site.run(ProcessUpload(key=OTHERS), "acme")
    for tenant, seen in (("acme", True), ("other", False)):
        answer = site.client.get("/v1/deadletters", params={"kind": "upload.process"}, headers=site.key(tenant))
        assert (status.id in answer.text) is seen


@ways
def test_a_tenant_has_nothing_signed_in_the_name_of_another(site: Site, way: str) -> None:
    def webhook(hook: str, **data: Any) -> DeliverWebhook:
        fields = {"hook": hook, "type": "job.succeeded", "occurred_at": "2026-01-01T00:00:00Z", "data": data}
        return DeliverWebhook.model_validate(fields)

    # Words of the data, "tenant" among them, are scrubbed from errors. The address is refused when all else is right.
    assert "hook 'others' is not for" in site.refused(webhook("others", tenant="acme"), "acme", way)
    assert "127.0.0.1" in site.refused(webhook("others"), "other", way)
    for data in ({"tenant": "other"}, {}):
        assert "hook 'shop' is for all" in site.refused(webhook("shop", **data), "acme", way)
    assert "127.0.0.1" in site.refused(webhook("shop", tenant="acme"), "acme", way)
    assert "is not for jobs without a tenant" in site.refused(webhook("others"), None)


def test_a_job_without_a_tenant_works_as_ever(site: Site) -> None:
    upload = site.done(ProcessUpload(key="incoming/shared.txt"), None)
    assert upload["original"].startswith("uploads/sha256/")
    assert site.done(ProcessUpload(key=OTHERS), None)["size"] == len(SECRET_TEXT)
    report = site.done(BuildReport(report="all"), None)
    assert (report["rows"], report["key"][:12]) == (3, "reports/all/")
    assert site.done(RunSync(sync="all"), None)["fetched"] == 3
    assert "enqueue it with tenant=" in site.refused(BuildReport(report="own"), None)
    assert "enqueue it with tenant=" in site.refused(RunSync(sync="own"), None)
