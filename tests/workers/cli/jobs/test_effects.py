from __future__ import annotations

from collections.abc import Callable
from typing import Any

from support.ledgers import Note, claimed, end, message

from penstock.ledger.effects import begin, confirm, effect_id
from penstock.ledger.sql.database import Database
from penstock.schemas import Outcome

Run = Callable[..., Any]


def test_the_effects_of_a_job_are_shown_and_decided_about(penstock: Run, ledger: Database) -> None:
    claim = claimed(ledger, message(Note()))
    job_id = claim.message.id
    for key in ("charge", "ship", "mail"):
        begin(ledger, job_id, claim.fence, key)
    confirm(ledger, job_id, claim.fence, "mail", '{"sent": 1}')
    refused = penstock("jobs", "effects", job_id, "--forget", "ship")
    assert (refused.code, "running" in refused.err) == (1, True)
    end(ledger, claim, Outcome.DEAD, error="in doubt", reason="in_doubt")
    output = penstock("jobs", "effects", job_id)
    assert all(word in output.out for word in ("charge", effect_id(job_id, "charge"), "not confirmed", "done"))
    decided = penstock("jobs", "effects", job_id, "--confirm", "charge", "--result", '"r7"', "--actor", "ada", "--json")
    assert decided.code == 0
    assert {row["key"]: (row["state"], row["result"]) for row in decided.json} == {
        "charge": ("done", "r7"),
        "ship": ("not confirmed", None),
        "mail": ("done", {"sent": 1}),
    }
    left = penstock("jobs", "effects", job_id, "--forget", "ship", "--actor", "ada", "--json").json
    assert {row["key"] for row in left} == {"charge", "mail"}
    assert penstock("jobs", "effects", job_id, "--forget", "mail").code == 1
    acts = penstock("audit", "list", "--subject", job_id, "--json").json
    assert {(act["actor"], act["act"], act["detail"]["key"]) for act in acts} == {
        ("ada", "confirm effect", "charge"),
        ("ada", "forget effect", "ship"),
    }


def test_options_that_make_no_sense_together_are_refused(penstock: Run, ledger: Database) -> None:
    for words in (("--result", "1"), ("--confirm", "a", "--forget", "b"), ("--confirm", "a", "--result", "{")):
        assert penstock("jobs", "effects", "x", *words).code == 2
    nothing = penstock("jobs", "effects", "x")
    assert (nothing.code, nothing.out, nothing.err.strip()) == (0, "", "no effects")
