"""Following a job: Server-Sent Events, a WebSocket, and tokens for browsers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx
import pytest
from support.gateways import INVOICE, SECRET, Gateway, Invoice, Open, Tree, problem
from support.ledgers import change, claimed, end, message, start_worker
from support.polling import WAIT_SECONDS
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from penstock.ledger.transitions.claim import Claim
from penstock.producers.tokens import progress_token
from penstock.schemas import Outcome


def submit(gateway: Gateway, key: dict[str, str], kind: str = "gateway.invoice", body: Any = INVOICE) -> str:
    return str(gateway.client.post(f"/v1/jobs/{kind}", json=body, headers=key).json()["id"])


def claim(gateway: Gateway, job_id: str) -> Claim:
    start_worker(gateway.database, "w1")
    return claimed(gateway.database, message(Invoice(**INVOICE), id=job_id))  # type: ignore[arg-type]


class Stream:
    """Events of a response, as name and data."""

    def __init__(self, response: httpx.Response) -> None:
        self._blocks = self._read(response)

    def _read(self, response: httpx.Response) -> Iterator[tuple[str, Any]]:
        name = ""
        for line in response.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))

    def until(self, state: str) -> tuple[str, Any]:
        return next(event for event in self._blocks if event[1]["state"] == state)

    def rest(self) -> list[tuple[str, Any]]:
        return list(self._blocks)


def test_a_job_is_followed_from_the_queue_to_its_result(gateway: Gateway) -> None:
    key = gateway.key()
    job_id = submit(gateway, key)
    with gateway.client.stream("GET", f"/v1/jobs/{job_id}/events", headers=key) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        stream = Stream(response)
        assert stream.until("queued")[0] == "status"
        claims = claim(gateway, job_id)
        assert stream.until("running")[1]["kind"] == "gateway.invoice"
        change(gateway.database, job_id, progress_done=1, progress_total=2)
        assert stream.until("running")[1]["progress"] == {"done": 1, "total": 2, "note": None}
        end(gateway.database, claims, Outcome.SUCCEEDED, result='"sent"')
        name, job = stream.until("succeeded")
        assert (name, job["result"]) == ("end", "sent")
        assert stream.rest() == []


def test_a_browser_that_has_seen_the_end_does_not_reconnect(gateway: Gateway) -> None:
    key = gateway.key()
    job_id = submit(gateway, key)
    end(gateway.database, claim(gateway, job_id), Outcome.DEAD)
    answer = gateway.client.get(f"/v1/jobs/{job_id}/events", headers=key)
    assert "id: end\n" in answer.text
    answer = gateway.client.get(f"/v1/jobs/{job_id}/events", headers={**key, "Last-Event-ID": "end"})
    assert (answer.status_code, answer.content) == (204, b"")


def test_a_token_shows_progress_and_nothing_else(gateway: Gateway) -> None:
    job_id = submit(gateway, gateway.key(tenants=["acme"]))
    end(gateway.database, claim(gateway, job_id), Outcome.SUCCEEDED, result='"secret"')
    token = progress_token(job_id, secret=SECRET)
    answer = gateway.client.get(f"/v1/jobs/{job_id}/events", params={"token": token})
    assert "secret" not in answer.text
    [data] = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert data == {"id": job_id, "state": "succeeded", "attempt": 1, "progress": None}
    problem(gateway.client.get(f"/v1/jobs/{job_id}", params={"token": token}), 401, "unauthenticated")


def test_a_token_is_for_one_job_and_for_a_while(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = (submit(gateway, gateway.key()) for _ in range(2))
    token = progress_token(own, secret=SECRET)
    problem(gateway.client.get(f"/v1/jobs/{other}/events", params={"token": token}), 403, "token-not-allowed")
    for wrong in ("", "x", token + "x", progress_token(own, secret="another secret altogether")):
        answer = gateway.client.get(f"/v1/jobs/{own}/events", params={"token": wrong})
        problem(answer, 401, "invalid-token")
    brief = progress_token(own, secret=SECRET, expires_in=timedelta(milliseconds=1))
    problem(gateway.client.get(f"/v1/jobs/{own}/events", params={"token": brief}), 401, "invalid-token")


def test_a_kind_that_is_not_tracked_cannot_be_followed(gateway: Gateway) -> None:
    key = gateway.key()
    job_id = submit(gateway, key, "gateway.tree", {})
    start_worker(gateway.database, "w1")
    end(gateway.database, claimed(gateway.database, message(Tree(), id=job_id)), Outcome.DEAD)
    problem(gateway.client.get(f"/v1/jobs/{job_id}/events", headers=key), 409, "wrong-state")


def test_a_websocket_follows_a_job_too(gateway: Gateway) -> None:
    key = gateway.key()
    job_id = submit(gateway, key)
    with connect(f"ws://127.0.0.1:{gateway.port}/v1/jobs/{job_id}/ws", additional_headers=key) as socket:
        assert json.loads(socket.recv(60))["job"]["state"] == "queued"
        end(gateway.database, claim(gateway, job_id), Outcome.SUCCEEDED, result="7")
        last = [json.loads(text) for text in socket][-1]
        assert (last["event"], last["job"]["state"], last["job"]["result"]) == ("end", "succeeded", 7)
        assert socket.close_code == 1000


def test_a_websocket_takes_a_token(gateway: Gateway) -> None:
    job_id = submit(gateway, gateway.key())
    end(gateway.database, claim(gateway, job_id), Outcome.SUCCEEDED)
    token = progress_token(job_id, secret=SECRET)
    with connect(f"ws://127.0.0.1:{gateway.port}/v1/jobs/{job_id}/ws?token={token}") as socket:
        assert json.loads(socket.recv(60))["job"] == {
            "id": job_id,
            "state": "succeeded",
            "attempt": 1,
            "progress": None,
        }


@pytest.mark.parametrize(("header", "status"), [({}, 401), ({"Authorization": "Bearer x"}, 401), (None, 404)])
def test_a_websocket_is_refused_with_a_problem(gateway: Gateway, header: dict[str, str] | None, status: int) -> None:
    job_id = submit(gateway, gateway.key(tenants=["acme"]))
    headers = gateway.key(tenants=["other"]) if header is None else header
    url = f"ws://127.0.0.1:{gateway.port}/v1/jobs/{job_id}/ws"
    with pytest.raises(InvalidStatus) as refused, connect(url, additional_headers=headers):
        pass
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body or b"")["status"] == status


def test_the_number_of_streams_is_limited(open_gateway: Open) -> None:
    gateway = open_gateway(max_streams=1)
    key = gateway.key()
    url = f"/v1/jobs/{submit(gateway, key)}/events"
    with gateway.client.stream("GET", url, headers=key) as response:
        stream = Stream(response)  # kept: without it the response is closed
        stream.until("queued")
        problem(gateway.client.get(url, headers=key), 503, "too-many-streams")
        del stream


def test_streams_that_begin_together_do_not_pass_the_limit(open_gateway: Open) -> None:
    gateway = open_gateway(max_streams=2)
    key = gateway.key()
    url = f"/v1/jobs/{submit(gateway, key)}/events"
    together, ended = threading.Barrier(8), threading.Barrier(8)

    def follow(_: int) -> int:
        together.wait(WAIT_SECONDS)
        with gateway.client.stream("GET", url, headers=key) as response:
            ended.wait(WAIT_SECONDS)  # all are open, or refused
            return response.status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(follow, range(8))) == [200] * 2 + [503] * 6


def test_a_gateway_that_stops_ends_its_streams(open_gateway: Open) -> None:
    gateway = open_gateway()
    key = gateway.key()
    with gateway.client.stream("GET", f"/v1/jobs/{submit(gateway, key)}/events", headers=key) as response:
        stream = Stream(response)
        stream.until("queued")
        stopping = threading.Thread(target=gateway.stop)
        stopping.start()
        assert stream.rest() == [], "it ends, without the job's end"
        stopping.join()
