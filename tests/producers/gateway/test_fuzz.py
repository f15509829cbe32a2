"""The gateway under input generated from its own OpenAPI document, right and wrong: never a 5xx, and as it says."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CHECKS, load_all_checks
from support.gateways import Gateway

from penstock.config.settings import Settings
from penstock.producers.gateway import create_app
from penstock.producers.gateway.openapi import document

load_all_checks()
# Rules that JSON Schema cannot express refuse bodies too, such as a mail without a text. And one path has GET for an
# id and POST for a kind.
NOT_CHECKED = CHECKS.get_by_names(["positive_data_acceptance", "allow_header_conformance"])
NO_REFUSAL = [*NOT_CHECKED, *CHECKS.get_by_names(["negative_data_rejection"])]
"""Items of a batch are refused one by one, with 207 for the whole; a parameter that a GET does not have is ignored."""
BATCHES = ("/v1/jobs", "/v1/events")

# Two of the kinds that tests have imported are enough.
schema = schemathesis.openapi.from_dict(document(create_app(Settings()))).exclude(
    path_regex=r"^/v1/jobs/(?!gateway\.invoice$|email\.send$|\{)"
)


@pytest.fixture(scope="module")
def key(running: Gateway) -> dict[str, str]:
    return running.key(kinds=["*"])


@schema.parametrize()
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), database=None)
def test_generated_requests_are_answered_as_the_document_says(running: Gateway, key: dict[str, str], case: Any) -> None:
    case.call_and_validate(
        base_url=f"http://127.0.0.1:{running.port}",
        headers=key,
        excluded_checks=NO_REFUSAL if case.path in BATCHES or case.method == "GET" else NOT_CHECKED,
    )
