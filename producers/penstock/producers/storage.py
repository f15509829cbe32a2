"""Object storage: files under a folder, or S3. What is too large for a job travels as a key in it.

`make_storage` picks one by the URL: `file:folder`, `file:///abs/folder`, or
`s3://bucket/prefix?endpoint_url=…&region=…`, with credentials found by boto3's own chain. boto3 is imported with the
first storage on S3.
"""

from __future__ import annotations

import contextlib
import mimetypes
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from stat import S_ISREG
from typing import IO, TYPE_CHECKING, Any, BinaryIO, TypeVar, cast
from urllib.parse import parse_qs, unquote, urlsplit

from penstock.config.errors import ConfigError, InvalidKey, ObjectNotFound, StorageError
from penstock.config.private_files import make_private_folder, tighten
from penstock.schemas.storage import CHUNK, Storage, Stored, TenantStorage, check_key, tenant_folder

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")
MAX_LINK = timedelta(days=7)
"""The longest a presigned S3 link may work."""

__all__ = [
    "CHUNK",
    "MAX_LINK",
    "FileStorage",
    "S3Storage",
    "Storage",
    "Stored",
    "TenantStorage",
    "check_key",
    "make_storage",
    "tenant_folder",
]


def make_storage(url: str) -> Storage:
    """Raises ConfigError."""
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        return FileStorage(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if unknown := sorted(set(options) - {"endpoint_url", "region"}):
            raise ConfigError(f"storage_url: unknown option {unknown[0]!r}; there are endpoint_url and region")
        return S3Storage(parts.netloc, unquote(parts.path).strip("/"), **options)
    raise ConfigError(f"storage_url with scheme {parts.scheme!r}: use file:folder or s3://bucket/prefix")


class FileStorage(Storage):
    """Files under a folder, which is made when first written to. Both are for their owner alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()  # a later chdir must not move it

    @contextmanager
    def read(self, key: str) -> Iterator[IO[bytes]]:
        path = self._path(key)
        try:
            file = path.open("rb")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise ObjectNotFound(f"no object {key!r} in {self.folder}") from error
        except OSError as error:
            raise StorageError(f"cannot read {key!r}: {error}") from error
        with file:
            yield file

    def write(self, key: str, source: BinaryIO, media_type: str | None = None) -> None:
        path = self._path(key)
        temporary: str | None = None
        try:
            make_private_folder(path.parent)
            tighten(self.folder)
            # In the target's folder, as a rename is atomic only within one file system.
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as file:
                temporary = file.name
                shutil.copyfileobj(source, file, CHUNK)
                file.flush()
                os.fsync(file.fileno())  # else a power cut could leave the name on an empty file
            os.replace(temporary, path)
        except OSError as error:
            raise StorageError(f"cannot write {key!r}: {error}") from error
        finally:
            if temporary is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)

    def find(self, key: str) -> Stored | None:
        try:
            status = self._path(key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StorageError(f"cannot read {key!r}: {error}") from error
        return Stored(status.st_size, guess_media_type(key)) if S_ISREG(status.st_mode) else None

    def delete(self, key: str) -> None:
        try:
            self._path(key).unlink()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            pass
        except OSError as error:
            raise StorageError(f"cannot delete {key!r}: {error}") from error

    def link(self, key: str, expires: timedelta = timedelta(days=1)) -> str:
        return self._path(key).as_uri()

    def _path(self, key: str) -> Path:
        path = self.folder / check_key(key)
        # A symbolic link inside the folder may lead out of it.
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise InvalidKey(f"storage key {key!r} leads out of {self.folder}")
        return path


class S3Storage(Storage):
    """A bucket, or a prefix in one."""

    def __init__(
        self, bucket: str, prefix: str = "", *, endpoint_url: str | None = None, region: str | None = None
    ) -> None:
        try:
            import boto3
            from botocore.config import Config
        except ImportError as error:
            raise ConfigError("storage_url s3://… needs boto3: install penstock[s3]") from error
        self.bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        config = Config(
            connect_timeout=10,
            read_timeout=60,
            retries={"mode": "standard", "max_attempts": 3},
            max_pool_connections=64,
            signature_version="s3v4",
            # Stores other than Amazon's often refuse the checksums that botocore adds by default.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"} if endpoint_url else {},
        )
        # A session of its own: boto3's default one is not safe to make clients from in several threads.
        self._client: S3Client = boto3.session.Session().client(
            "s3", endpoint_url=endpoint_url, region_name=region, config=config
        )

    @contextmanager
    def read(self, key: str) -> Iterator[IO[bytes]]:
        body = self._call(key, lambda: self._client.get_object(Bucket=self.bucket, Key=self._key(key))["Body"])
        with contextlib.closing(body):
            yield cast("IO[bytes]", _Body(body, key))

    def write(self, key: str, source: BinaryIO, media_type: str | None = None) -> None:
        extra = {"ContentType": media_type or guess_media_type(key)}
        stream = cast("IO[Any]", _UploadStream(source))
        self._call(key, lambda: self._client.upload_fileobj(stream, self.bucket, self._key(key), ExtraArgs=extra))

    def find(self, key: str) -> Stored | None:
        try:
            head = self._call(key, lambda: self._client.head_object(Bucket=self.bucket, Key=self._key(key)))
        except ObjectNotFound:
            return None
        return Stored(head["ContentLength"], head.get("ContentType") or guess_media_type(key))

    def delete(self, key: str) -> None:
        self._call(key, lambda: self._client.delete_object(Bucket=self.bucket, Key=self._key(key)))

    def link(self, key: str, expires: timedelta = timedelta(days=1)) -> str:
        if not timedelta(0) < expires <= MAX_LINK:
            raise ValueError(f"a link works for more than zero and at most {MAX_LINK.days} days, not {expires}")
        target = {"Bucket": self.bucket, "Key": self._key(key)}
        seconds = int(expires.total_seconds()) or 1
        return self._call(
            key, lambda: self._client.generate_presigned_url("get_object", Params=target, ExpiresIn=seconds)
        )

    def close(self) -> None:
        self._client.close()

    def _key(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _call(self, key: str, call: Callable[[], T]) -> T:
        return _wrap_errors(f"s3://{self.bucket}", key, call)


class _Body:
    """A streamed answer, whose errors in the middle of reading are the storage's too."""

    def __init__(self, body: Any, key: str) -> None:
        self._body, self._key = body, key

    def read(self, size: int = -1) -> bytes:
        amount = None if size < 0 else size
        return cast(bytes, _wrap_errors("S3", self._key, lambda: self._body.read(amount)))


class _UploadStream:
    """Stream in the form that upload_fileobj needs.

    upload_fileobj closes its stream (boto/s3transfer#80), which the caller may want to rewind. It also takes a short
    read for the end of the stream, which would store only the beginning.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source = source

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            return self._source.read()
        pieces, left = [], size
        while left and (piece := self._source.read(left)):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)


def _wrap_errors(where: str, key: str, call: Callable[[], T]) -> T:
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return call()
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in ("404", "NoSuchKey", "NotFound"):
            raise ObjectNotFound(f"no object {key!r} in {where}") from error
        raise StorageError(f"{where}, {key!r}: {error}") from error
    except (BotoCoreError, Boto3Error, OSError) as error:
        raise StorageError(f"{where}, {key!r}: {error}") from error


def guess_media_type(key: str) -> str:
    """Media type by the suffix of the key; for stored objects, not for uploads."""
    if key.endswith(".webp"):
        return "image/webp"  # unknown to mimetypes before Python 3.13
    return mimetypes.guess_type(key, strict=False)[0] or "application/octet-stream"
