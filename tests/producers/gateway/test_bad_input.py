"""Bodies of all bad sorts: each is a problem of the client's, none a fault of ours."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from support.gateways import INVOICE, Gateway, Open, problem

PATH = "/v1/jobs/gateway.invoice"
GOOD = json.dumps(INVOICE).encode()


def post(gateway: Gateway, body: Any, content_type: str = "application/json", path: str = PATH, **headers: str) -> Any:
    return gateway.client.post(path, content=body, headers={**gateway.key(), "Content-Type": content_type, **headers})


@pytest.mark.parametrize(
    "body",
    [
        GOOD[:-1],
        b'{"number": 7, "to": "ada@exam',
        b"{",
        b"nonsense",
        b"\xff\xfe{}",
        GOOD.decode().encode("utf-16"),
        b'{"number": 7, "to": "\xe9@example.com"}',
        b'{"number": 7, "to": "\\ud800"}',
        b'{"number": NaN, "to": "ada@example.com"}',
        b'{"number": Infinity, "to": "ada@example.com"}',
        b"[" * 100_000,
        b'{"number":' * 5000 + b"1" + b"}" * 5000,
        b'{"number": ' + b"9" * 5000 + b"}",
        b"\x00",
        GOOD + b"{}",
    ],
)
@pytest.mark.parametrize("path", [PATH, "/v1/jobs"])
def test_a_body_that_is_not_json_is_a_400(gateway: Gateway, body: bytes, path: str) -> None:
    answer = post(gateway, body, path=path)
    assert answer.status_code in (400, 422), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"], "it says where"
    assert gateway.sent("invoices") == []


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"number": "7", "to": 5}, "#/to"),
        ({"to": "ada@example.com"}, "#/number"),
        ({**INVOICE, "surplus": 1}, "#/surplus"),
        ({**INVOICE, "a/b~c": 1}, "#/a~1b~0c"),
        ({**INVOICE, "number": -1}, "#/number"),
        ({**INVOICE, "number": 1e400}, "#/number"),
        ({**INVOICE, "number": [[[[]]]]}, "#/number"),
        ({**INVOICE, "lines": {"0": {}}}, "#/lines"),
        ({**INVOICE, "lines": [None]}, "#/lines/0"),
        ([INVOICE], "#"),
        (None, "#"),
        ("text", "#"),
        (7, "#"),
    ],
)
def test_a_field_of_a_wrong_type_is_pointed_at(gateway: Gateway, body: Any, pointer: str) -> None:
    text = json.dumps(body).replace("Infinity", "1e400")
    errors = problem(post(gateway, text), 422, "invalid-fields")["errors"]
    assert pointer in [error["pointer"] for error in errors]


def test_deep_nesting_is_refused_where_a_field_would_take_anything(gateway: Gateway) -> None:
    deep = b'{"data": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    problem(post(gateway, deep, path="/v1/jobs/gateway.tree"), 400, "invalid-json")
    batch = b'{"jobs": [{"kind": "gateway.tree", "payload": ' + deep + b"}]}"
    problem(post(gateway, batch, path="/v1/jobs"), 400, "invalid-json")


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
        "application/json; charset=utf-16",
        "application/json; charset=iso-8859-1",
        "application/json; charset=nonsense",
        "nonsense",
        "",
    ],
)
def test_a_body_of_another_type_or_charset_is_a_415(gateway: Gateway, content_type: str) -> None:
    answer = post(gateway, GOOD, content_type)
    assert answer.status_code == 415
    assert answer.json()["errors"][0]["header"] == "Content-Type"


def test_a_compressed_body_is_a_415(gateway: Gateway) -> None:
    problem(post(gateway, GOOD, **{"Content-Encoding": "gzip"}), 415, "wrong-encoding")


@pytest.mark.parametrize("content_type", ["application/json; charset=UTF-8", "application/vnd.acme+json"])
def test_json_by_another_name_is_taken(gateway: Gateway, content_type: str) -> None:
    assert post(gateway, GOOD, content_type).status_code == 202


def test_a_body_over_the_limit_is_a_413_with_or_without_a_content_length(open_gateway: Open) -> None:
    gateway = open_gateway(max_body_bytes=2000)
    assert post(gateway, b" " * 1900 + GOOD).status_code == 202
    body = problem(post(gateway, b" " * 2001), 413, "body-too-large")
    assert body["limit"] == 2000
    problem(post(gateway, iter([b" " * 500] * 50)), 413, "body-too-large")


def test_a_body_that_does_not_come_is_a_408(open_gateway: Open) -> None:
    gateway = open_gateway(body_timeout_seconds=0.1)
    with socket.create_connection(("127.0.0.1", gateway.port), 60) as connection:
        connection.sendall(_head(gateway, len(GOOD)) + GOOD[:10])
        assert b"408" in connection.makefile("rb").readline()


def test_a_client_that_leaves_in_mid_body_sends_nothing(gateway: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), 60) as connection:
        connection.sendall(_head(gateway, len(GOOD)) + GOOD[:10])
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass
    assert gateway.client.get("/health").status_code == 200
    assert gateway.sent("invoices") == []


def test_paths_and_methods_that_are_none_are_problems(gateway: Gateway) -> None:
    problem(gateway.client.get("/nothing"), 404, "not-found")
    problem(gateway.client.get("/v1/jobs/"), 404, "not-found")
    answer = gateway.client.put(PATH, json=INVOICE)
    problem(answer, 405, "method-not-allowed")
    assert "allow" in answer.headers


def _head(gateway: Gateway, length: int) -> bytes:
    key = gateway.key()["Authorization"]
    return (
        f"POST {PATH} HTTP/1.1\r\nHost: gateway\r\nAuthorization: {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()
