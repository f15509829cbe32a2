"""Streams of jobs take a bounded part of each framework's server, and wrong secrets are refused before it serves."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sites import BIN, GUNICORN, SECRET, UVICORN
from support.ledgers import Note, set_up
from support.polling import WAIT_SECONDS, until

from penstock.config.errors import ConfigError
from penstock.ledger.sql.database import Database
from penstock.producers import AsyncProducer, Producer
from penstock.producers.contrib import web
from penstock.producers.tokens import progress_token
from penstock.workers.local.up.redis_server import free_port

DJANGO = f"""
from django.conf import settings
settings.configure(
    ROOT_URLCONF="app", ALLOWED_HOSTS=["*"], SECRET_KEY={SECRET!r}, PENSTOCK_MAX_STREAMS=2,
    INSTALLED_APPS=["penstock.producers.contrib.django"],
)
from django.urls import include, path
urlpatterns = [path("penstock/", include("penstock.producers.contrib.django.urls"))]
"""
APPS = {
    "flask": f"""
from flask import Flask
from penstock.producers.contrib.flask import Penstock
app = Flask(__name__)
app.config.update(SECRET_KEY={SECRET!r}, PENSTOCK_MAX_STREAMS=2)
Penstock(app)
""",
    "pyramid": f"""
from pyramid.config import Configurator
with Configurator(settings={{"penstock.secret": {SECRET!r}, "penstock.max_streams": "2"}}) as config:
    config.include("penstock.producers.contrib.pyramid", route_prefix="/penstock")
    app = config.make_wsgi_app()
""",
    "django": DJANGO + "from django.core.wsgi import get_wsgi_application\napp = get_wsgi_application()\n",
    "django-asgi": DJANGO + "from django.core.asgi import get_asgi_application\napp = get_asgi_application()\n",
    "starlette": f"""
from penstock.producers.contrib.starlette import Penstock
from starlette.applications import Starlette
from starlette.routing import Mount
penstock = Penstock(secret={SECRET!r}, max_streams=2)
app = Starlette(routes=[Mount("/penstock", routes=penstock.routes)], lifespan=penstock.lifespan)
""",
    "fastapi": f"""
from fastapi import FastAPI
from penstock.producers.contrib.fastapi import Penstock
penstock = Penstock(secret={SECRET!r}, max_streams=2)
app = FastAPI(lifespan=penstock.lifespan)
app.include_router(penstock.router, prefix="/penstock")
""",
    "tornado": f"""
import asyncio, sys
from penstock.producers.contrib.tornado import Penstock
from tornado.web import Application
async def main():
    async with Penstock(secret={SECRET!r}, max_streams=2) as penstock:
        Application(penstock.handlers("/penstock"), penstock=penstock).listen(int(sys.argv[1]), "127.0.0.1")
        await asyncio.Event().wait()
if __name__ == "__main__":
    asyncio.run(main())
""",
}
SERVERS = dict.fromkeys(("flask", "pyramid", "django"), (*GUNICORN, "--workers", "1", "app:app"))
SERVERS |= dict.fromkeys(("starlette", "fastapi"), (*UVICORN, "app:app"))
SERVERS |= {"django-asgi": (*UVICORN, "--lifespan", "off", "app:app"), "tornado": ("python", "app.py", "{port}")}
OFTEN = "from penstock.producers.contrib import web\nweb.KEEP_ALIVE_SECONDS = 0.05  # notices soon who left\n"


@contextmanager
def serving(name: str, folder: Path, environment: dict[str, str]) -> Iterator[httpx.Client]:
    (folder / "app.py").write_text(OFTEN + APPS[name])
    port, log = free_port(), folder / "server.log"
    program, *arguments = (part.format(port=port) for part in SERVERS[name])
    with log.open("wb") as out:
        server = subprocess.Popen(
            [BIN / program, *arguments], cwd=folder, env=os.environ | environment, stdout=out, stderr=out
        )
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def answers() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return client.get("/penstock/ready").status_code == 200
        return False

    try:
        until(answers, unless=lambda: server.poll() is not None and log.read_text())
        yield client
    finally:
        client.close()
        server.send_signal(signal.SIGTERM)
        server.wait(WAIT_SECONDS)
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.mark.filterwarnings("ignore:'cgi' is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", APPS)
def test_a_server_follows_as_many_jobs_as_it_may_and_answers_the_next_with_503(
    name: str, redis_url: str, prefix: str, sqlite_url: str, tmp_path: Path
) -> None:
    environment = {
        "PENSTOCK_BROKER_URL": redis_url,
        "PENSTOCK_PREFIX": prefix,
        "PENSTOCK_DATABASE_URL": set_up(sqlite_url),
    }
    path = f"/penstock/events?token={progress_token('a-job', secret=SECRET)}"
    with serving(name, tmp_path, environment) as client:
        with client.stream("GET", path) as first, client.stream("GET", path) as second:
            assert (first.status_code, second.status_code) == (200, 200)
            frames = [first.iter_bytes(), second.iter_bytes()]  # held: httpx closes the connections with them
            assert [next(stream)[:7] for stream in frames] == [b"retry: "] * 2
            with client.stream("GET", path) as refused:
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
                assert "followed" in json.loads(refused.read())["detail"]
            assert client.get("/penstock/ready").status_code == 200

        def follows_again() -> bool:
            with client.stream("GET", path) as stream:
                return stream.status_code == 200

        until(follows_again)
        until(lambda: _ends_with_its_token(client))


def _ends_with_its_token(client: httpx.Client) -> bool:
    """Whether a stream was followed until its token expired, and no longer. False: it had expired before."""
    token = progress_token("a-job", secret=SECRET, expires_in=timedelta(seconds=1))
    path, give_up_at = f"/penstock/events?token={token}", time.monotonic() + WAIT_SECONDS
    with client.stream("GET", path) as stream:
        if stream.status_code != 200:
            return False
        for _ in stream.iter_bytes():
            assert time.monotonic() < give_up_at, "its token has expired, and the stream goes on"
    assert client.get(path).status_code == 403
    return True


def test_a_stream_counts_until_it_ends_or_is_closed_or_dropped(redis_url: str, prefix: str, ledger: Database) -> None:
    streams = web.Streams(1)
    with Producer(redis_url, prefix=prefix, database_url=ledger.url) as producer:
        handle = producer.enqueue(Note())
        closed = streams.follow(handle)
        with pytest.raises(web.TooManyStreams):
            streams.follow(handle)
        closed.close()
        dropped = streams.follow(handle)
        assert next(dropped).startswith(b"retry")
        del dropped
        gc.collect()
        unread = streams.follow(handle)
        unread.close()
        with Producer(redis_url, prefix=prefix, database_url="sqlite://") as without_tables:
            assert len(list(streams.follow(without_tables.handle(handle.id)))) == 1
        streams.follow(handle).close()


@pytest.mark.parametrize("limit", [0, -1, True, None, "many", 1.5])
def test_a_limit_of_streams_that_is_not_a_number_is_refused(limit: object) -> None:
    with pytest.raises(ConfigError, match="max_streams"):
        web.Streams(limit)


def _flask(secret: Any) -> None:
    from flask import Flask

    from penstock.producers.contrib.flask import Penstock

    app = Flask(__name__)
    app.config["SECRET_KEY"] = secret
    Penstock(app, producer=Producer("redis://127.0.0.1:9/0"))


def _pyramid(secret: Any) -> None:
    from pyramid.config import Configurator

    with Configurator(settings={"penstock.secret": secret}) as config:
        config.include("penstock.producers.contrib.pyramid")


def _starlette(secret: Any) -> None:
    from penstock.producers.contrib.starlette import Penstock

    Penstock(secret=secret)


def _fastapi(secret: Any) -> None:
    from penstock.producers.contrib.fastapi import Penstock

    Penstock(secret=secret)


def _tornado(secret: Any) -> None:
    from penstock.producers.contrib.tornado import Penstock

    Penstock(secret=secret, producer=AsyncProducer("redis://127.0.0.1:9/0"))


@pytest.mark.filterwarnings("ignore:'cgi' is deprecated:DeprecationWarning")
@pytest.mark.parametrize("make", [_flask, _pyramid, _starlette, _fastapi, _tornado])
@pytest.mark.parametrize("secret", ["fifteen bytes..", 12345678901234567890])
def test_a_secret_that_cannot_sign_is_refused_where_the_application_is_made(
    make: Callable[[Any], None], secret: Any
) -> None:
    with pytest.raises(ConfigError, match="the secret of progress tokens"):
        make(secret)


def test_a_secret_that_cannot_sign_is_refused_with_djangos_urls() -> None:
    code = (
        "from django.conf import settings; settings.configure(SECRET_KEY='short'); import django; django.setup();"
        "import penstock.producers.contrib.django.urls"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ConfigError: SECRET_KEY: the secret of progress tokens has 5 bytes; give at least 16" in done.stderr
