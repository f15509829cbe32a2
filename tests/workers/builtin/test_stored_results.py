"""Where large results lie, on files and on S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.ledger.queries.results import delete_result, read_result, write_result
from penstock.producers.storage import Storage, make_storage


@pytest.fixture(params=["file", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    url = f"file:{tmp_path}/objects" if request.param == "file" else request.getfixturevalue("s3_url")
    storage = make_storage(url)
    yield storage
    storage.close()


@pytest.mark.parametrize("job_id", ["019f", "orders/7/../..", "..", "x" * 128, "ж" * 128, "a b\n"])
def test_stored_results_have_a_distinct_reference_for_any_job_id(storage: Storage, job_id: str) -> None:
    ref = write_result(storage, job_id, 3, b'{"a": 1}')
    other = write_result(storage, job_id + "-", 3, b"2")
    assert read_result(storage, ref) == {"a": 1}
    assert len(ref) <= 255
    delete_result(storage, ref)
    assert storage.find(ref) is None
    assert read_result(storage, other) == 2


def test_deleting_a_result_takes_what_crashed_attempts_left(storage: Storage) -> None:
    refs = [write_result(storage, "j", fence, b"1") for fence in (1, 2, 3)]
    delete_result(storage, refs[1])
    delete_result(storage, refs[1])
    assert [storage.find(ref) is not None for ref in refs] == [False, False, True]
