"""Control characters in data: they reach neither a terminal nor a log."""

from __future__ import annotations

import logging

import pytest

from penstock.config.logging import LINES, setup_logging
from penstock.config.printable import printable

EVIL = "\x1b]0;owned\x07\nforged line\r\x85\x7f\u2028\u202e"
ESCAPED = "\\x1b]0;owned\\x07\\nforged line\\r\\x85\\x7f\\u2028\\u202e"


def test_control_characters_are_escaped_and_other_text_is_not() -> None:
    assert printable(EVIL) == ESCAPED
    assert printable("a\nb\t\x1b", lines=True) == "a\nb\t\\x1b"
    assert printable("Zoë 日本 \u00a0 \\x1b") == "Zoë 日本 \u00a0 \\x1b"
    assert printable("\ud800") == "\\ud800"


def test_a_log_line_of_data_is_one_line_without_control_characters(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging("info", "text")
    logging.getLogger("penstock.x").error("message %s is lost", EVIL, extra={"job_id": EVIL, "kind": [EVIL]})
    written = capsys.readouterr().err
    assert ESCAPED in written
    assert written.endswith("\n")
    assert written[:-1].isprintable()


def test_a_traceback_and_a_stack_in_a_log_keep_their_lines(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging("info", "text")
    try:
        raise ValueError(EVIL)
    except ValueError:
        logging.getLogger("penstock.x").exception("failed")
    logging.getLogger("penstock.x").error("it is here:\n%s", "stack", extra=LINES)
    written = capsys.readouterr().err
    assert "Traceback (most recent call last):\n" in written
    assert "it is here:\nstack" in written
    assert all(line.isprintable() for line in written.split("\n"))


def test_a_log_in_json_has_no_control_characters(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging("info", "json")
    logging.getLogger("penstock.x").error("message %s is lost", EVIL.replace("\x7f", ""))
    written = capsys.readouterr().err
    assert written[:-1].isprintable()
