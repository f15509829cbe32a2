"""Logins, roles and bounds; and requests that other sites make a browser send."""

from __future__ import annotations

import http.client
import json
import re
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from served import Flower
from support.ledgers import start_worker

from penstock.config.sections.passwords import hash_password
from penstock.ledger.members import controls
from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.schemas.states import State
from penstock.schemas.wire.ids import new_id

HASH = hash_password("correct horse")
PROXY, STRANGER = "127.0.0.9", "127.0.0.8"
SETTINGS = f"""
[console]
proxy_header = "X-Forwarded-User"
groups_header = "X-Forwarded-Groups"
proxies = ["{PROXY}/32"]
[console.groups]
ops = "operator"
[console.roles]
"*@example.com" = "viewer"
[[console.users]]
name = "vera"
password_hash = "{HASH}"
[[console.users]]
name = "otto"
password_hash = "{HASH}"
role = "operator"
kinds = ["engines.*"]
tenants = ["acme"]
[[console.users]]
name = "paula"
role = "operator"
tenants = ["acme"]
"""
Answer = tuple[int, str]


@pytest.fixture
def console(start_console: Callable[..., Flower], tmp_path: Path) -> Flower:
    (tmp_path / "penstock.toml").write_text(SETTINGS)
    return start_console("engine_jobs")


def ask(
    console: Flower,
    method: str,
    path: str,
    login: str | None = None,
    source: str = "127.0.0.1",
    headers: dict[str, str] | None = None,
) -> Answer:
    sent = dict(headers or {})
    if login is not None:
        sent["Authorization"] = "Basic " + b64encode(login.encode()).decode()
    connection = http.client.HTTPConnection("127.0.0.1", console.port, timeout=60, source_address=(source, 0))
    try:
        connection.request(method, path, headers=sent, body=b"" if method == "POST" else None)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def record(ledger: Database, kind: str, tenant: str | None, state: State = State.SCHEDULED) -> str:
    job_id, now = new_id(), datetime.now(UTC)
    row = {"id": job_id, "kind": kind, "queue": "engines", "priority": "normal", "delivery": "at_least_once"}
    row |= {"version": 1, "payload": "{}", "tenant": tenant, "state": state, "enqueued_at": now, "due_at": now}
    ledger.write(lambda connection: connection.execute(sa.insert(jobs).values(**row)))
    return job_id


def test_everything_but_health_and_files_asks_for_a_login(console: Flower) -> None:
    for path in (
        "/",
        "/workers",
        "/worker/a",
        "/broker",
        "/tasks",
        "/metrics",
        "/deadletters",
        "/none",
        "/api/workers",
    ):
        assert ask(console, "GET", path)[0] == 401, path
    for path in ("/api/tasks", "/api/task/info/a", "/api/task/types", "/api/queues/length", "/api/penstock/live"):
        assert ask(console, "GET", path)[0] == 401, path
    assert ask(console, "GET", "/healthcheck") == (200, "OK")
    assert ask(console, "GET", "/static/css/flower.css")[0] == 200


def test_metrics_can_be_opened(start_console: Callable[..., Flower], tmp_path: Path) -> None:
    (tmp_path / "penstock.toml").write_text("[console]\nmetrics_login = false\n")
    console = start_console()
    assert ask(console, "GET", "/metrics")[0] == 200
    assert ask(console, "GET", "/workers")[0] == 401


def test_a_password_is_checked_against_its_hash(console: Flower) -> None:
    assert ask(console, "GET", "/api/tasks", "vera:correct horse")[0] == 200
    for wrong in ("vera:correct", "vera:", "vera", ":correct horse", f"vera:{HASH}", "Vera:correct horse", "paula:"):
        assert ask(console, "GET", "/api/tasks", wrong)[0] == 401
    for header in ("Basic", "Basic !!", "Bearer abc", "Basic " + b64encode(b"\xff\xfe:x").decode()):
        assert ask(console, "GET", "/api/tasks", headers={"Authorization": header})[0] == 401


def test_guessing_is_stopped_and_those_who_are_known_still_come_in(console: Flower) -> None:
    assert ask(console, "GET", "/api/tasks", "vera:correct horse")[0] == 200
    statuses = [ask(console, "GET", "/api/tasks", f"vera:guess {number}")[0] for number in range(8)]
    assert statuses == [401] * 5 + [429] * 3
    assert ask(console, "GET", "/api/tasks", "vera:correct horse")[0] == 200, "it is remembered"
    assert ask(console, "GET", "/api/tasks", "otto:correct horse")[0] == 200, "another user"
    assert ask(console, "GET", "/api/tasks", "vera:guess", source=STRANGER)[0] == 401, "another address"
    statuses = [ask(console, "GET", "/api/tasks", f"user {number}:guess")[0] for number in range(30)]
    assert statuses[-1] == 429, "many names from one address"


def test_the_proxy_s_header_counts_from_its_address_alone(console: Flower) -> None:
    ops = {"X-Forwarded-User": "ada", "X-Forwarded-Groups": "staff, ops"}
    assert ask(console, "GET", "/api/tasks", source=PROXY, headers=ops)[0] == 200
    for source in ("127.0.0.1", STRANGER):
        assert ask(console, "GET", "/api/tasks", source=source, headers=ops)[0] == 403
        assert ask(console, "GET", "/api/tasks", "op:secret", source=source, headers=ops)[0] == 403, "nor with a login"
        forged = {**ops, "X-Forwarded-For": PROXY, "X-Real-Ip": PROXY, "Forwarded": f"for={PROXY}"}
        assert ask(console, "GET", "/api/tasks", source=source, headers=forged)[0] == 403
        assert ask(console, "GET", "/api/tasks", source=source, headers={"x-forwarded-user": "ada"})[0] == 403
    for headers in ({"X-Forwarded-User": "ada"}, {"X-Forwarded-User": ""}, {"X-Forwarded-Groups": "ops"}):
        assert ask(console, "GET", "/api/tasks", source=PROXY, headers=headers)[0] in (401, 403)
    page = ask(console, "GET", "/workers", source=PROXY, headers={"X-Forwarded-User": "eve@elsewhere.org"})
    assert page[0] == 403
    assert "has no role here" in page[1]
    bob = {"X-Forwarded-User": "bob@example.com"}
    assert ask(console, "GET", "/api/tasks", source=PROXY, headers=bob)[0] == 200
    assert ask(console, "GET", "/api/tasks", "op:secret", source=PROXY)[0] == 200, "without the header a login counts"


def test_forwarded_addresses_do_not_make_a_stranger_the_proxy(
    start_console: Callable[..., Flower], tmp_path: Path
) -> None:
    (tmp_path / "penstock.toml").write_text(SETTINGS)
    console = start_console("engine_jobs", FLOWER_XHEADERS="1")
    forged = {"X-Forwarded-User": "bob@example.com", "X-Forwarded-For": PROXY, "X-Real-Ip": PROXY}
    assert ask(console, "GET", "/api/tasks", source=STRANGER, headers=forged)[0] == 403
    assert ask(console, "GET", "/api/tasks", source=PROXY, headers=forged)[0] == 200


CROSS = (
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
    {"Referer": "https://evil.example/page"},
    {"Origin": "http://127.0.0.1.evil.example:{port}"},
    {"Origin": "http://127.0.0.1:1"},
)


@pytest.mark.parametrize("cross", CROSS, ids=lambda headers: " ".join(f"{k}={v}" for k, v in headers.items()))
def test_a_request_of_another_site_does_nothing_even_with_the_token(
    console: Flower, ledger: Database, cross: dict[str, str]
) -> None:
    job_id = record(ledger, "engines.add", "acme")
    headers = {name: value.format(port=console.port) for name, value in cross.items()}
    headers |= {"Cookie": "_xsrf=abc", "X-XSRFToken": "abc"}
    for path in (f"/api/task/revoke/{job_id}", "/api/worker/shutdown/a", "/api/penstock/live", "/tasks/datatable"):
        assert ask(console, "POST", path, "op:secret", headers=headers)[0] == 403
    proxied = {**headers, "X-Forwarded-User": "ada", "X-Forwarded-Groups": "ops"}
    assert ask(console, "POST", f"/api/task/revoke/{job_id}", source=PROXY, headers=proxied)[0] == 403
    assert audit.find(ledger) == []


def test_a_browser_needs_the_token_and_a_program_with_a_login_does_not(console: Flower, ledger: Database) -> None:
    ids = [record(ledger, "engines.add", "acme") for _ in range(4)]
    here = {"Origin": f"http://127.0.0.1:{console.port}"}
    for headers in (
        here,
        {"Sec-Fetch-Site": "same-origin"},
        {"Referer": f"http://127.0.0.1:{console.port}/jobs"},
        {"Cookie": "_xsrf=abc"},
        {**here, "X-XSRFToken": "abc"},
        {**here, "Cookie": "_xsrf=abc", "X-XSRFToken": "abd"},
        {**here, "Cookie": "_xsrf=abc", "X-XSRFToken": ""},
        {**here, "Cookie": "_xsrf=", "X-XSRFToken": ""},
    ):
        assert ask(console, "POST", f"/api/task/revoke/{ids[0]}", "op:secret", headers=headers)[0] == 403, headers
    with_token = {**here, "Cookie": "_xsrf=abc", "X-XSRFToken": "abc"}
    assert ask(console, "POST", f"/api/task/revoke/{ids[0]}", "op:secret", headers=with_token)[0] == 200
    assert ask(console, "POST", f"/api/task/revoke/{ids[1]}", "op:secret")[0] == 200, "as curl sends it"
    by_proxy = {"X-Forwarded-User": "ada", "X-Forwarded-Groups": "ops"}
    assert ask(console, "POST", f"/api/task/revoke/{ids[2]}", source=PROXY, headers=by_proxy)[0] == 403
    both = {**by_proxy, **with_token}
    assert ask(console, "POST", f"/api/task/revoke/{ids[3]}", source=PROXY, headers=both)[0] == 200
    assert [(line.actor, line.subject) for line in reversed(audit.find(ledger))] == [
        ("op", ids[0]),
        ("op", ids[1]),
        ("ada", ids[3]),
    ]


def test_no_cross_origin_reads_and_no_frames(start_console: Callable[..., Flower]) -> None:
    console = start_console(FLOWER_UNAUTHENTICATED_API="1")
    connection = http.client.HTTPConnection("127.0.0.1", console.port, timeout=60)
    for path in ("/api/tasks", "/workers", "/deadletters", "/none"):
        connection.request("GET", path, headers={"Origin": "https://evil.example"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 401
        assert answer.headers["Access-Control-Allow-Origin"] is None
        assert answer.headers["X-Frame-Options"] == "DENY"
    connection.close()


def test_what_is_out_of_bounds_does_not_exist(console: Flower, ledger: Database) -> None:
    inside = record(ledger, "engines.add", "acme")
    outside = [
        record(ledger, "engines.add", "other"),
        record(ledger, "engines.add", None),
        record(ledger, "billing.run", "acme"),
    ]
    otto = "otto:correct horse"
    assert set(json.loads(ask(console, "GET", "/api/tasks", otto)[1])) == {inside}
    assert ask(console, "GET", f"/api/task/info/{inside}", otto)[0] == 200
    for job_id in (*outside, "none"):
        for path in (f"/api/task/info/{job_id}", f"/api/task/result/{job_id}"):
            status, text = ask(console, "GET", path, otto)
            assert (status, text.replace(job_id, "ID")) == (404, "no job with the id ID is recorded in the ledger")
        status, text = ask(console, "POST", f"/api/task/revoke/{job_id}?terminate=true", otto)
        assert (status, text.replace(job_id, "ID")) == (404, "no job with the id ID is recorded in the ledger")
    assert ask(console, "POST", f"/api/task/revoke/{inside}", otto)[0] == 200
    assert ask(console, "GET", "/metrics", otto)[0] == 403
    assert ask(console, "POST", "/api/worker/shutdown/a", otto)[0] == 403
    assert ask(console, "POST", "/api/task/send-task/engines.add", otto)[0] == 403, "without its tenant"
    types = json.loads(ask(console, "GET", "/api/task/types", otto)[1])["task-types"]
    assert types
    assert all(name.startswith("engines.") for name in types)
    paula = {"X-Forwarded-User": "paula"}
    seen = json.loads(ask(console, "GET", "/api/tasks", source=PROXY, headers=paula)[1])
    assert set(seen) == {inside, outside[2]}, "bounds hold for those whom the proxy names, too"
    assert [(line.actor, line.subject) for line in audit.find(ledger)] == [("otto", inside)]


def test_links_and_buttons_lead_to_what_the_person_may_do(console: Flower, ledger: Database) -> None:
    start_worker(ledger, "w1")
    controls.pause(ledger, "kind", "engines.add", actor="op")
    for login, expected in (("vera:correct horse", {"limits", "outboxes"}), ("otto:correct horse", set())):
        for path in ("workers", "alerts", "queues", "kinds"):
            status, html = ask(console, "GET", f"/{path}", login)
            assert (status, "data-act=" in html) == (200, False), (login, path)
            links = set(re.findall(r'href="/(limits|outboxes|settings|audit)"', html))
            assert links == {"audit"} | expected, (login, path)
    for path in ("limits", "outboxes"):
        assert ask(console, "GET", f"/{path}", "otto:correct horse")[0] == 404
        assert ask(console, "GET", f"/{path}", "op:secret")[0] == 200
    html = ask(console, "GET", "/kinds", "op:secret")[1]
    assert 'href="/settings"' in html
    assert "kinds/engines.add/resume" in html


def test_the_page_says_who_is_logged_in_with_role_and_bounds(console: Flower) -> None:
    _, html = ask(console, "GET", "/workers", "otto:correct horse")
    words = " ".join(re.sub(r"<[^>]*>", " ", html).split())
    assert "otto operator" in words
    assert "kinds engines.*; tenants acme" in html


@pytest.mark.parametrize(
    ("path", "status", "says"), [("/none", 404, "nothing at this address"), ("/metrics", 403, "bounds")]
)
def test_errors_are_pages_in_plain_words(console: Flower, path: str, status: int, says: str) -> None:
    answer = ask(console, "GET", path, "otto:correct horse")
    assert answer[0] == status
    assert says in answer[1]
    assert "<nav" in answer[1]
    assert "Traceback" not in answer[1]


def test_a_read_only_console_lets_no_one_act(start_console: Callable[..., Flower], ledger: Database) -> None:
    console = start_console(FLOWER_READ_ONLY="1")
    job_id = record(ledger, "engines.add", None)
    assert ask(console, "POST", f"/api/task/revoke/{job_id}", "op:secret")[0] == 403
    assert ask(console, "GET", f"/api/task/info/{job_id}", "op:secret")[0] == 200


def test_no_password_is_in_the_log(start_console: Callable[..., Flower], tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "penstock.toml").write_text(SETTINGS)
    console = start_console()
    ask(console, "GET", "/api/tasks", "vera:my secret guess")
    ask(console, "GET", "/api/tasks", "evil\nname:my secret guess")
    logged = capfd.readouterr().err
    assert "a login was wrong: vera, from 127.0.0.1" in logged
    assert "secret guess" not in logged
    assert "evil\\nname" in logged
