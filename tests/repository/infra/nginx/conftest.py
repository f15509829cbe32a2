"""A site behind nginx: a gateway, a worker and Flower, for the tests of the proxy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from repository.infra.nginx.site import HERE, LOGIN, Site, find_nginx, nginx
from repository.infra.processes import PENSTOCK, listens, running
from support.gateways import SECRET
from support.ledgers import set_up

from penstock.ledger.members import api_keys
from penstock.ledger.sql.database import Database
from penstock.workers.local.up.redis_server import RedisServer, free_port


@pytest.fixture(scope="module")
def environment(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    find_nginx()
    folder = tmp_path_factory.mktemp("ledger")
    return {
        "PENSTOCK_BROKER_URL": redis_server.url,
        "PENSTOCK_DATABASE_URL": set_up(f"sqlite:///{folder}/ledger.db"),
        "PENSTOCK_STORAGE_URL": f"file:{folder}/storage",
        "PENSTOCK_PREFIX": "proxied",
        "PENSTOCK_TOKEN_SECRET": SECRET,
        "PENSTOCK_FLOWER_BASIC_AUTH": LOGIN,
        "PYTHONPATH": str(HERE),
    }


@pytest.fixture(scope="module")
def site(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    gateway, flower = free_port(), free_port()
    database = Database(environment["PENSTOCK_DATABASE_URL"])
    text, _key = api_keys.add(database, "test")
    database.close()
    jobs = ["--import", "proxied_jobs"]
    with (
        running(
            [PENSTOCK, "gateway", "--port", str(gateway), *jobs],
            folder / "gateway.log",
            environment=environment,
            ready=lambda _: listens(gateway),
        ),
        running(
            [PENSTOCK, "flower", "--port", str(flower), "--url-prefix", "flower"],
            folder / "flower.log",
            environment=environment,
            ready=lambda _: listens(flower),
        ),
        running(
            [PENSTOCK, "worker", "--queues", "proxied", "--name", "climber", *jobs],
            folder / "worker.log",
            environment=environment,
            ready=lambda _: "ready" in (folder / "worker.log").read_text(),
        ),
        nginx(folder / "nginx", gateways=[gateway], flower=flower) as proxy,
    ):
        site = Site(proxy, folder, {"Authorization": f"Bearer {text}"}, gateway)
        yield site
        site.close()
