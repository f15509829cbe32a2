from __future__ import annotations

import io
import threading
import urllib.request
from datetime import timedelta
from pathlib import Path

import pytest
from support.builtin.tools import get, put

from penstock.config.errors import ConfigError, InvalidKey, ObjectNotFound, StorageError
from penstock.producers.storage import FileStorage, S3Storage, Storage, make_storage


@pytest.fixture(params=["file", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path):
    url = f"file:{tmp_path}/objects" if request.param == "file" else request.getfixturevalue("s3_url")
    storage = make_storage(url)
    yield storage
    storage.close()


def test_a_stored_object_is_read_in_chunks(storage: Storage):
    put(storage, "a/b/c.bin", b"0123456789" * 100)
    with storage.read("a/b/c.bin") as stream:
        assert stream.read(7) == b"0123456"
        assert len(stream.read()) == 993
        assert stream.read(10) == b""


def test_a_large_object_comes_back_whole(storage: Storage):
    content = bytes(range(256)) * 48 * 1024  # 12 MiB: several parts on S3
    source = io.BytesIO(content)
    storage.write("large.bin", source)
    assert not source.closed
    assert get(storage, "large.bin") == content


def test_size_and_media_type_are_found(storage: Storage):
    put(storage, "photo.webp", b"12345")
    stat = storage.find("photo.webp")
    assert stat is not None
    assert (stat.size, stat.media_type) == (5, "image/webp")


def test_a_missing_object_is_none_or_an_error_that_names_the_key(storage: Storage):
    assert storage.find("no/such.txt") is None
    with pytest.raises(ObjectNotFound, match=r"no/such\.txt"), storage.read("no/such.txt"):
        pass


def test_writing_again_replaces_the_object(storage: Storage):
    put(storage, "twice", b"old content")
    put(storage, "twice", b"new")
    assert get(storage, "twice") == b"new"


def test_deleting_twice_is_harmless(storage: Storage):
    put(storage, "gone", b"x")
    storage.delete("gone")
    storage.delete("gone")
    assert storage.find("gone") is None


def test_a_link_can_be_opened_without_credentials(storage: Storage):
    put(storage, "with space/ü.txt", b"hello")
    with urllib.request.urlopen(storage.link("with space/ü.txt", timedelta(minutes=1))) as answer:
        assert answer.read() == b"hello"


BAD = [
    "",
    "/etc/passwd",
    "../up",
    "a/../b",
    "a//b",
    "a/./b",
    "a/",
    "a\x00b",
    "a\nb",
    "a\\b",
    "\ud800",
    "x" * 1025,
    "y" * 201,
]


@pytest.mark.parametrize("key", BAD)
def test_a_key_that_leads_elsewhere_is_refused_everywhere(storage: Storage, key: str):
    with pytest.raises(InvalidKey), storage.read(key):
        pass
    with pytest.raises(InvalidKey):
        storage.write(key, io.BytesIO(b"x"))
    for call in (storage.find, storage.delete, storage.link):
        with pytest.raises(InvalidKey):
            call(key)


def test_a_stream_that_gives_little_at_a_time_is_stored_whole(storage: Storage):
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size, 1000) if size and size > 0 else size)

    storage.write("slow", Slow(b"x" * 50_000))
    assert get(storage, "slow") == b"x" * 50_000


def test_a_stream_that_breaks_leaves_the_old_object(storage: Storage):
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 100_000:
                raise OSError("the source is gone")
            return super().read(50_000)

    put(storage, "kept", b"old")
    with pytest.raises(StorageError, match="kept"):
        storage.write("kept", Broken(b"x" * 500_000))
    assert get(storage, "kept") == b"old"


def test_threads_may_share_it(storage: Storage):
    def put_and_get(number: int) -> None:
        for turn in range(5):
            put(storage, f"t/{number}", f"{number} {turn}".encode() * 1000)
            assert get(storage, f"t/{number}") == f"{number} {turn}".encode() * 1000
            done.append(number)

    done: list[int] = []
    threads = [threading.Thread(target=put_and_get, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 40


def test_temporary_files_do_not_stay_in_the_folder(tmp_path: Path):
    storage = FileStorage(tmp_path)
    put(storage, "a", b"1")
    put(storage, "a", b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_symbolic_link_does_not_lead_out_of_the_folder(tmp_path: Path):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "out").symlink_to(tmp_path)
    with pytest.raises(InvalidKey, match="leads out"), FileStorage(tmp_path / "in").read("out/secret"):
        pass


def test_a_folder_is_not_an_object_and_a_file_is_not_a_folder(tmp_path: Path):
    storage = FileStorage(tmp_path)
    put(storage, "folder/file", b"x")
    assert storage.find("folder") is None
    with pytest.raises(ObjectNotFound), storage.read("folder"):
        pass
    with pytest.raises(StorageError, match="folder/file/deeper"):
        put(storage, "folder/file/deeper", b"x")


def test_an_s3_server_out_of_reach_is_a_storage_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    storage = S3Storage("bucket", endpoint_url="http://127.0.0.1:1", region="us-east-1")
    with pytest.raises(StorageError, match="'x'") as caught:
        storage.find("x")
    assert not isinstance(caught.value, ObjectNotFound)
    storage.close()


def test_a_missing_bucket_is_not_a_missing_object(s3_url: str):
    storage = make_storage(s3_url.replace("bucket/some", "nobucket/some"))
    with pytest.raises(StorageError) as caught:
        put(storage, "x", b"x")
    assert not isinstance(caught.value, ObjectNotFound)
    storage.close()


def test_an_s3_link_cannot_outlive_seven_days(s3_url: str):
    storage = make_storage(s3_url)
    with pytest.raises(ValueError, match="7 days"):
        storage.link("x", timedelta(days=8))
    storage.close()


@pytest.mark.parametrize(
    "url", ["", "folder", "file:", "file://host/share", "s3://", "ftp://x/y", "s3://b/p?acl=public"]
)
def test_a_url_that_names_no_storage_is_refused(url: str):
    with pytest.raises(ConfigError, match="storage_url"):
        make_storage(url)


def test_file_urls_may_be_relative_or_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for url in ("file:var/x", f"file:{tmp_path}/var/x", f"file://{tmp_path}/var/x", "file:var%2Fx"):
        storage = make_storage(url)
        assert isinstance(storage, FileStorage)
        assert storage.folder == tmp_path / "var" / "x"
