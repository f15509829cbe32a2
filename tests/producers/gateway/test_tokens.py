"""Tokens that let a browser follow one job."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.config.errors import ConfigError, InvalidToken
from penstock.producers.tokens import progress_token, read_progress_token
from penstock.schemas.wire.ids import new_id

SECRET = "a secret of enough bytes"


def test_a_token_is_read_with_its_secret_only() -> None:
    job_id = new_id()
    token = progress_token(job_id, secret=SECRET)
    assert read_progress_token(token, secret=SECRET) == job_id
    with pytest.raises(InvalidToken, match="not one of this server's"):
        read_progress_token(token, secret="another secret, as long")


def test_a_token_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    token = progress_token("a", secret=SECRET, expires_in=timedelta(minutes=5))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 299)
    assert read_progress_token(token, secret=SECRET) == "a"
    monkeypatch.setattr(time, "time", lambda: now + 301)
    with pytest.raises(InvalidToken, match="expired"):
        read_progress_token(token, secret=SECRET)


def test_a_token_that_has_expired_at_once_is_not_made() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        progress_token("a", secret=SECRET, expires_in=timedelta())


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ConfigError, match="16"):
        progress_token("a", secret="short")


def test_a_token_fits_into_a_url() -> None:
    token = progress_token(new_id(), secret=SECRET)
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


@given(st.text())
def test_a_text_that_is_not_a_token_is_refused(text: str) -> None:
    with pytest.raises(InvalidToken):
        read_progress_token(text, secret=SECRET)


def test_a_changed_token_is_refused() -> None:
    token = progress_token(new_id(), secret=SECRET)
    for place in range(len(token)):
        other = "A" if token[place] != "A" else "B"
        # The last character of base64 may hold bits that count for nothing; it is compared as text all the same.
        with pytest.raises(InvalidToken):
            read_progress_token(token[:place] + other + token[place + 1 :], secret=SECRET)
