"""Mail → the bytes of SMTP, kept in a file."""

from __future__ import annotations

import base64
import io
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from email.message import EmailMessage, Message
from typing import IO, Any

_IN_MEMORY = 1024 * 1024
_BLOCK = 64 * 1024
_LINE = 57
"""Bytes that make a line of 76 characters in base64 (RFC 2045, section 6.8)."""
_LONG_WORD = 76
_DOT = re.compile(rb"^\.", re.MULTILINE)
_TOKEN = re.compile(rb"(penstock-[0-9a-f]{32})")
_ADDRESSES = ("From", "To", "Cc", "Reply-To")


class Mail:
    """A mail whose attachments are read when it is written.

    Attributes:
        message: has a token in the place of the content of each attachment.
    """

    def __init__(self, message: EmailMessage) -> None:
        self.message = message
        self._contents: dict[str, Iterable[bytes]] = {}

    def fill(self, part: Message[Any, Any], content: Iterable[bytes]) -> None:
        """Let the part have this content, whatever its own; read once, by `flatten`."""
        token = f"penstock-{uuid.uuid4().hex}"
        part.set_payload(token)
        self._contents[token] = content

    def flatten(self, *, smtputf8: bool, linesep: str = "\r\n") -> Flattened:
        """Write the mail into a temporary file.

        Arguments:
            smtputf8: the server takes addresses in letters beyond ASCII. Without it they are shown as the names of
                empty groups (RFC 6857, section 3.2), and the mail is one that any server takes.

        Raises:
            Any error of the contents.
        """
        from email.generator import BytesGenerator  # late, as in `[emails]`

        is_international = _is_international(self.message)
        if is_international and not smtputf8:
            _downgrade(self.message)
            is_international = False
        frame = io.BytesIO()
        BytesGenerator(frame, policy=_make_policy(linesep, utf8=is_international)).flatten(self.message)
        file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115  # closed with the Flattened
        try:
            for piece in _TOKEN.split(frame.getvalue()):
                if (content := self._contents.get(piece.decode("latin-1"))) is None:
                    file.write(piece)
                else:
                    for lines in _base64(content):
                        file.write(lines.replace(b"\n", linesep.encode()))
            file.seek(-1, io.SEEK_END)
            if file.read(1) != b"\n":
                file.write(linesep.encode())
        except BaseException:
            file.close()
            raise
        return Flattened(file, is_international=is_international)


class Flattened:
    """The bytes of a mail, in a file.

    Attributes:
        is_international: it needs SMTPUTF8 (RFC 6531).
    """

    def __init__(self, file: IO[bytes], *, is_international: bool) -> None:
        self._file, self.is_international = file, is_international

    def __enter__(self) -> Flattened:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        """Size in bytes, for the SIZE that SMTP declares."""
        return self._file.seek(0, io.SEEK_END)

    def blocks(self) -> Iterator[bytes]:
        """The mail from its start, whole lines at a time."""
        self._file.seek(0)
        while lines := self._file.readlines(_BLOCK):
            yield b"".join(lines)

    def dotted(self) -> Iterator[bytes]:
        """The mail with dots doubled at the start of lines, as SMTP has it (RFC 5321, section 4.5.2)."""
        for block in self.blocks():
            yield _DOT.sub(b"..", block)


def _make_policy(linesep: str, *, utf8: bool) -> Any:
    from email.policy import EmailPolicy

    class Policy(EmailPolicy):
        """Leaves long words of headers whole: in encoded words no reader would take a URL or an id for one."""

        def fold_binary(self, name: str, value: str) -> bytes:
            words = str(value).split()
            if max(map(len, words), default=0) <= _LONG_WORD or not str(value).isascii():
                return super().fold_binary(name, value)
            return f"{name}: ".encode() + self.linesep.encode().join(_folded(len(name), words)) + self.linesep.encode()

    return Policy(cte_type="7bit", linesep=linesep, utf8=utf8)


def _folded(width: int, words: list[str]) -> Iterator[bytes]:
    """Lines of at most 76 characters, except for longer words; each but the first starts with a space.

    Arguments:
        width: characters before the first word.
    """
    line = ""
    for word in words:
        if line and width + len(line) + len(word) > _LONG_WORD:
            yield line.encode()
            line, width = "", 0
        line += f" {word}" if line or width == 0 else word
    yield line.encode()


def _base64(content: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in content:
        rest += block
        whole = len(rest) - len(rest) % _LINE
        yield base64.encodebytes(rest[:whole])
        rest = rest[whole:]
    yield base64.encodebytes(rest)


def _is_international(message: EmailMessage) -> bool:
    return any(not address.username.isascii() for name in _ADDRESSES for address in _header(message, name).addresses)


def _downgrade(message: EmailMessage) -> None:
    from email.headerregistry import Group

    for name in _ADDRESSES:
        if message[name] is not None:
            members = [
                group if all(address.username.isascii() for address in group.addresses) else Group(str(group), ())
                for group in _header(message, name).groups
            ]
            message.replace_header(name, members)


class _Missing:
    addresses = groups = ()


def _header(message: EmailMessage, name: str) -> Any:
    return message[name] or _Missing
