"""A sync whose process is killed in the middle loses no page and writes none twice."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

from sqlalchemy import text
from support.builtin.paged_api import PagedApi
from support.builtin.servers import Target

from penstock.workers.builtin.databases import Databases

PROGRAM = """
import asyncio, json, sys
from penstock.config.settings import Settings
from penstock.schemas.builtin.syncs import RunSync
from penstock.workers import Context
from penstock.workers.builtin.databases import Databases
from penstock.workers.builtin.syncs.handler import run_sync
url, name, sync = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
settings, databases = Settings(database_url=url, syncs={name: sync}), Databases()
asyncio.run(run_sync(RunSync(sync=name), Context(job_id="1"), databases, settings))
"""


def test_a_killed_sync_goes_on_behind_its_last_page(any_target: Target, databases: Databases, api: PagedApi):
    api.add(52)
    api.page = 4
    sync = {"url": api.url, "items": "data", "next_cursor": "meta.next", "table": any_target.name}
    if any_target.engine.dialect.name == "postgresql":
        with any_target.engine.begin() as connection:
            for statement in COUNTING:
                connection.execute(text(statement.format(name=any_target.name)))
    for is_last in (False, True):
        child = subprocess.Popen([sys.executable, "-c", PROGRAM, any_target.url, any_target.name, json.dumps(sync)])
        killer = threading.Timer(0.005, child.kill)
        if not is_last:
            # It is killed somewhere in the fourth page: the request for the fifth has no answer before.
            api.faults = [
                lambda: None,
                lambda: None,
                lambda: None,
                killer.start,
                lambda child=child: child.wait(30) and None,
            ]
        assert (child.wait(60) == 0) is is_last
    assert len(any_target.rows()) == 60
    assert len(api.requests) <= 17
    if any_target.engine.dialect.name == "postgresql":
        with any_target.engine.connect() as connection:
            writes = connection.execute(text("SELECT count(*), count(DISTINCT id) FROM writes")).one()
        assert tuple(writes) == (60, 60)


COUNTING = [
    "CREATE TABLE {name} (id varchar(191) PRIMARY KEY, updated_at text, record json NOT NULL)",
    "CREATE TABLE writes (id text)",
    "CREATE FUNCTION note_write() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN INSERT INTO writes VALUES (NEW.id); RETURN NEW; END $$",
    "CREATE TRIGGER note_write AFTER INSERT OR UPDATE ON {name} FOR EACH ROW EXECUTE FUNCTION note_write()",
]
