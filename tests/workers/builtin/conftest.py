"""Fixtures of the tests of the built-in workers."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from support.builtin.paged_api import PagedApi
from support.builtin.servers import Api, Server, Target, controlled
from support.servers.shared import MARIADB_URL, POSTGRES_URL, need

from penstock.producers.storage import FileStorage
from penstock.schemas.wire.ids import new_id
from penstock.workers import Context
from penstock.workers.builtin.databases import Databases
from penstock.workers.builtin.emails.mailers.mailer import Mailer
from penstock.workers.builtin.emails.transport import make_mailer


@pytest.fixture
def ctx() -> Context:
    return Context(job_id=new_id())


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    return FileStorage(tmp_path / "storage")


@pytest.fixture
def databases() -> Iterator[Databases]:
    databases = Databases()
    yield databases
    databases.close()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 server in this process, with a bucket `bucket`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its own dependencies say is not ours
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_url(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = boto3.session.Session().client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    client.close()
    return f"s3://bucket/some/prefix?endpoint_url={s3_endpoint}&region=us-east-1"


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def smtp_url(server: Server) -> Iterator[str]:
    controller = controlled(server)
    yield f"smtp://127.0.0.1:{controller.port}?timeout=10"
    controller.stop()


@pytest.fixture
def mailer(smtp_url: str) -> Iterator[Mailer]:
    mailer = make_mailer(smtp_url)
    yield mailer
    mailer.close()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not installed")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 "
        f"-keyout {key} -out {cert}".split(),
        check=True,
        capture_output=True,
    )
    return cert, key


@pytest.fixture
def api() -> Iterator[PagedApi]:
    api = PagedApi()
    api.add(8)
    yield api
    api.stop()


@pytest.fixture
def target(sqlite_url: str, prefix: str, api: Api) -> Iterator[Target]:
    target = Target(sqlite_url, prefix, api)
    yield target
    target.drop()


@pytest.fixture(params=["SQLite", "PostgreSQL", "MariaDB"])
def any_target(
    request: pytest.FixtureRequest, sqlite_url: str, prefix: str, api: Api, databases: Databases
) -> Iterator[Target]:
    if request.param == "SQLite":
        urls = [sqlite_url]
    else:
        need(request.param)
        base = {"PostgreSQL": POSTGRES_URL, "MariaDB": MARIADB_URL}[request.param]
        server = create_engine(base, isolation_level="AUTOCOMMIT")
        with server.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {prefix}"))
        urls = [f"{base.rpartition('/')[0]}/{prefix}"]
    target = Target(urls[0], prefix, api)
    yield target
    target.engine.dispose()
    databases.close()
    if request.param != "SQLite":
        with server.connect() as connection:
            connection.execute(text(f"DROP DATABASE {prefix}"))
        server.dispose()
