"""Folders of tenants: distinct for any two names, and not left by any key."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.config.errors import InvalidKey
from penstock.producers.storage import FileStorage, TenantStorage, check_key, tenant_folder

NAMES = [
    "a",
    "ab",
    "A",
    "a/b",
    "a%2Fb",
    "a%252Fb",
    "",
    ".",
    "..",
    "...",
    "%2E",
    "a b",
    "a\n",
    "\u00e9",
    "e\u0301",
    "\ud800",
]
NAMES += ["x" * 120, "x" * 255, "/" * 255, "%empty", "*", "{tenant}"]
names = st.text(st.characters(), max_size=255)


def test_odd_names_have_folders_of_their_own() -> None:
    folders = {tenant_folder(name) for name in NAMES}
    assert len(folders) == len(NAMES)
    assert not [folder for folder in folders if folder.count("/") != 1 or check_key(folder) != folder]
    assert tenant_folder("acme", "customers/t-{tenant}/files") == "customers/t-acme/files"


@given(names, names)
def test_two_names_never_share_a_folder(first: str, second: str) -> None:
    one_folder, other_folder = f"{tenant_folder(first)}/", f"{tenant_folder(second)}/"
    assert one_folder.startswith(other_folder) == (first == second)


@given(st.text(), st.sampled_from(["tenants/a/", ""]))
def test_a_key_that_is_accepted_is_below_the_folder_however_often_it_is_decoded(text: str, start: str) -> None:
    class Recorder(FileStorage):
        def find(self, key: str) -> None:
            keys.append(key)

    keys: list[str] = []
    try:
        TenantStorage(Recorder(Path("/nowhere")), "a").find(start + text)
    except InvalidKey:
        return
    assert keys == [start + text]
    assert keys[0].startswith("tenants/a/")
    assert ".." not in keys[0].removeprefix("tenants/a/").replace("%2e", ".").replace("%2E", ".").split("/")


def test_every_method_is_bound_to_the_folder(tmp_path: Path) -> None:
    whole = FileStorage(tmp_path)
    whole.write("tenants/ab/x", io.BytesIO(b"theirs"))
    storage = TenantStorage(whole, "a")
    storage.write("tenants/a/x", io.BytesIO(b"ours"))
    assert storage.find("tenants/a/x") is not None
    assert storage.link("tenants/a/x").startswith("file:")
    for key in ("tenants/ab/x", "tenants/a/../ab/x", "x"):
        for method in (storage.read, storage.find, storage.delete, storage.link):
            with pytest.raises(InvalidKey):
                method(key)
        with pytest.raises(InvalidKey):
            storage.write(key, io.BytesIO(b"overwritten"))
    with whole.read("tenants/ab/x") as stream:
        assert stream.read() == b"theirs"
