"""Certificates for TLS, of a CA of the test's own."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Certificate:
    file: Path
    key: Path


class Authority:
    """A CA in a folder."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed: no certificates")
        self.folder = folder
        folder.mkdir(parents=True)
        self.file, self._key = folder / "ca.crt", folder / "ca.key"
        extensions = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]
        self._openssl(
            "req", "-x509", "-keyout", str(self._key), "-out", str(self.file), *extensions, name="a test's CA"
        )

    def issue(self, name: str, alternative: str) -> Certificate:
        """A certificate for a server or a client.

        Arguments:
            alternative: its subject's alternative name, such as `IP:127.0.0.1`.
        """
        file, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        signed = ["-CA", str(self.file), "-CAkey", str(self._key), "-addext", f"subjectAltName={alternative}"]
        signed += ["-addext", "basicConstraints=CA:FALSE"]
        self._openssl("req", "-x509", "-keyout", str(key), "-out", str(file), *signed, name=name)
        return Certificate(file, key)

    def _openssl(self, *arguments: str, name: str) -> None:
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        done = subprocess.run(
            ["openssl", *arguments, *kind, "-subj", f"/CN={name}"], capture_output=True, text=True, cwd=self.folder
        )
        assert done.returncode == 0, done.stderr
