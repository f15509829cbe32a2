from __future__ import annotations

import sys
import textwrap
import traceback
from collections.abc import Callable

import pytest

from penstock.ledger.rows.fingerprints import Frame, fingerprint, last_own_frame, normalised

SAME = [
    ("no invoice 7", "no invoice 81234"),
    ("no invoice 0192f0c1-7d2e-7cc3-98c4-dc0c0c07398f", "no invoice 0192f0c1-7d2e-7cc3-98c4-aaaaaaaaaaaa"),
    ("object at 0x7f2a9c", "object at 0x55d1ff00"),
    ("bad digest deadbeef01", "bad digest 99aabbccdd0"),
    ("customer cus_9s6XKzkNRiz8 is gone", "customer cus_Aa1 is gone"),
    ("no file 'a.txt' here", "no file 'it\\'s here.txt' here"),
    ('no file "a.txt" here', 'no file "other thing" here'),
    ("key b'ab' unknown", "key b'xyz' unknown"),
    ("refused a@b.example for good", "refused someone.else+x@mail.example.org for good"),
    ("GET https://api.example/v1/x?y=1 failed", "GET http://other.example/ failed"),
    ("no route to 10.0.0.1:5432", "no route to 192.168.17.4:80"),
    ("no route to fe80::1 at all", "no route to 2001:db8::ff00:42:8329 at all"),
    ("expired at 2026-03-01T09:00:00+01:00 already", "expired at 2025-12-31 23:59:59.123Z already"),
    ("since Mon, 02 Mar 2026 10:00:00 GMT", "since Tue, 13 Oct 2025 01:02:03 +0200"),
    ("since Fri Nov 20 16:03:51 2026", "since Sun May 3 06:03:51 2026"),
    ("took 0.25 of 1,000", "took 17 of 3.5e-7"),
    ("missing columns ['a', 'b']", "missing columns ['c']"),
    ("ids 1, 2, 3 are gone", "ids 9 are gone"),
    ("worker celery@host-7 died", "worker dramatiq@other died"),
    ("line one\n  line two 1", "line one line two 22"),
    ("cut off in the middle of 'a quoted", "cut off in the middle of 'an"),
    ("customer Alice Smith is blocked", "customer Bob is blocked"),
    ("country DE is not served", "country fr is not served"),
    ("no route for EUR to USD", "no route for GBP to CHF"),
    ("tenant=acme user=alice failed", "tenant=globex user=bob failed"),
    ("digest deadbeef does not match", "digest 0192f0c1 does not match"),
    (
        'duplicate key value violates unique constraint "uq_slug"\nDETAIL:  Key (slug)=(winter-sale) already exists.',
        'duplicate key value violates unique constraint "uq_slug"\nDETAIL:  Key (slug)=(summer sale) already exists.',
    ),
    ("relation acme_eu.orders does not exist", "relation globex_us.orders does not exist"),
    (
        "[Errno 2] No such file or directory: /srv/spool/acme/in.csv",
        "[Errno 2] No such file or directory: /srv/spool/globex/deep/er/data.csv",
    ),
    ("cannot open C:\\spool\\acme\\in.csv for reading", "cannot open D:\\x\\in.csv for reading"),
    (
        "1 validation error for Order\nto\n  Field required [type=missing, input_value={'a': 1}]",
        "1 validation error for Order\nto\n  Field required [type=missing, input_value={'b': 2, 'c': 3}]",
    ),
    (
        "An error occurred (NoSuchKey) when calling GetObject: The specified key does not exist: acme/logo.png",
        "An error occurred (NoSuchKey) when calling GetObject: The specified key does not exist: globex/a.png",
    ),
    ("No such customer: cus_NffrFeUfNV2Hib", "No such customer: cus_Bob"),
    ("SMTPRecipientsRefused: (550, b'5.1.1 Bob unknown')", "SMTPRecipientsRefused: (551, b'5.1.2 Ann unknown')"),
]
OTHER = [
    ("no invoice 7", "no order 7"),
    ("the workers' queue is full", "the workers' queue is empty"),
    ("can't find the user's name", "can't find the user's address"),
    ("std::string is wrong", "std::vector is wrong"),
    ("May I come in", "Must I come in"),
    ("the row is locked", "the row is not locked"),
    ("the file is on the list", "the file is off the list"),
    ("ended by ConnectionResetError at last", "ended by ReadTimeoutError at last"),
    ("Connection refused", "Connection reset by peer"),
    ("文件不存在", "订单不存在"),
]
UNCHANGED = [
    "list index out of range",
    "Connection refused",
    "timed out",
    "division by zero",
    "the workers' queue is full",
    "can't find the user's name",
    "expected a boolean, not a string",
]


@pytest.mark.parametrize(("first", "second"), SAME)
def test_numbers_and_ids_do_not_change_a_fingerprint(first: str, second: str) -> None:
    assert normalised(first) == normalised(second)
    assert fingerprint("k", f"ValueError: {first}") == fingerprint("k", f"ValueError: {second}")


@pytest.mark.parametrize(("first", "second"), OTHER)
def test_the_text_of_an_error_changes_a_fingerprint(first: str, second: str) -> None:
    assert normalised(first) != normalised(second)


@pytest.mark.parametrize("message", UNCHANGED)
def test_a_message_without_anything_that_differs_is_kept_as_it_is(message: str) -> None:
    assert normalised(message) == message


def test_the_placeholders_say_what_stood_there() -> None:
    message = "at 10:00:00 'x' (7) of a@b.c with 0xff by Ann in /tmp/x"
    assert normalised(message) == "at <time> <text> (<number>) of <address> with <id> by <id> in <path>"


def test_kind_and_type_count_and_any_text_has_a_fingerprint() -> None:
    ones = [
        ("a", "ValueError: x"),
        ("b", "ValueError: x"),
        ("a", "KeyError: x"),
        (None, ""),
        ("a", "\udcff \0 x" * 900),
    ]
    fingerprints = {fingerprint(*error) for error in ones}
    assert len(fingerprints) == len(ones)
    assert all(len(value) == 16 and int(value, 16) >= 0 for value in fingerprints)


def test_a_long_message_is_cut_before_it_is_looked_at() -> None:
    assert normalised("x " * 5000 + "one") == normalised("x " * 5000 + "other")


def test_the_last_own_frame_is_that_of_the_application() -> None:
    assert last_own_frame(_traceback("/srv/releases/4711/acme/mails.py")) == Frame("acme/mails.py", "send")
    assert last_own_frame(_traceback("/app/acme/mails.py")) == Frame("acme/mails.py", "send")
    assert last_own_frame(_traceback("C:\\app\\acme\\mails.py")) == Frame("acme/mails.py", "send")


def test_the_last_frame_of_a_package_counts_where_the_application_is_installed_as_one() -> None:
    installed = "/venv/lib/python3.11/site-packages/acme/mails.py"
    assert last_own_frame(_traceback(installed)) == Frame("httpx/_client.py", "get")


def test_the_line_does_not_count_and_the_frame_does() -> None:
    trace = _traceback("/app/acme/mails.py")
    base = fingerprint("k", "ValueError: x", trace)
    assert base == fingerprint("k", "ValueError: x", trace.replace("line 30", "line 31"))
    assert base != fingerprint("k", "ValueError: x", trace.replace("in send", "in fetch"))
    assert base != fingerprint("k", "ValueError: x")


def test_the_last_raised_of_several_exceptions_counts() -> None:
    first, last = _traceback("/app/acme/first.py"), _traceback("/app/acme/last.py")
    chained = f"{first}\nThe above exception was the direct cause of the following exception:\n\n{last}"
    assert last_own_frame(chained) == Frame("acme/last.py", "send")


def test_a_real_traceback_of_a_group_is_read() -> None:
    namespace: dict[str, Callable[[], None]] = {}
    source = "def inner():\n    raise ExceptionGroup('several', [ValueError('x')])\n"
    exec(compile(source, "/app/acme/groups.py", "exec"), namespace)
    with pytest.raises(ExceptionGroup) as caught:
        namespace["inner"]()
    trace = "".join(traceback.format_exception(caught.value))
    assert last_own_frame(trace) == Frame("acme/groups.py", "inner")
    assert last_own_frame("no traceback") is None


def _traceback(own: str) -> str:
    standard = f"/usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}"
    return textwrap.dedent(f"""\
        Traceback (most recent call last):
          File "/venv/lib/python3.11/site-packages/penstock/workers/executor/attempt/run.py", line 61, in run_attempt
            ending = _returned(attempt, await _call(attempt, arguments, threads))
          File "{own}", line 30, in send
            answer = client.get(url)
                     ^^^^^^^^^^^^^^^
          File "/venv/lib/python3.11/site-packages/httpx/_client.py", line 1055, in get
            return self.request()
          File "{standard}/socket.py", line 7, in connect
            raise OSError(1)
          File "/src/penstock/workers/penstock/workers/handlers/context.py", line 9, in progress
          File "<frozen importlib._bootstrap>", line 1, in _load
        OSError: 1
        """)
