"""Write a bill of materials of the production image, and its requirements with hashes, into dist/.

make sbom                                   # for the Python and the extras of infra/docker/Dockerfile
make sbom ARGS="--extras workers,postgres"  # for an image that is built with --build-arg EXTRAS=workers,postgres

dist/penstock-VERSION.cdx.json      CycloneDX 1.6: packages, licenses, hashes, and which package needs which
dist/requirements-PYTHON.txt        what `pip install --require-hashes` takes; the Dockerfile uses it where it is there
dist/build-requirements-PYTHON.txt  the same for the build of the wheel

Hashes are those of the files that this machine installs, so it must have the platform of the image. Neither file names
the index that a package came from.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from pythons import find

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "infra/docker/Dockerfile"
VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)


def argument(name: str, text: str) -> str:
    """The default of an ARG of the Dockerfile."""
    (value,) = re.findall(rf"^ARG {name}=(.+)$", text, re.MULTILINE)
    return str(value)


def run(*command: str | Path) -> None:
    """Run a command; its output shows only if it fails, and then ends this program."""
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")


def install(python: Path, folder: Path, *requirements: str) -> dict[str, Any]:
    """Install requirements into a fresh virtual environment.

    Returns:
        pip's report of it.
    """
    run(python, "-m", "venv", folder)
    report = folder / "report.json"
    pip = [folder / "bin/python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run(*pip, "--only-binary=:all:", "--report", report, "-c", ROOT / "constraints.txt", *requirements)
    installed: dict[str, Any] = json.loads(report.read_text("utf-8"))
    return installed


def hashes(report: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """(Name, version) of each package of pip's report → SHA-256 of the file that was installed."""
    digests = {}
    for item in report["install"]:
        archive = item["download_info"].get("archive_info")
        if archive is not None:  # a folder has none: it is the project itself
            name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
            digests[name, item["metadata"]["version"]] = archive["hashes"]["sha256"]
    return dict(sorted(digests.items()))


def requirements(packages: Mapping[tuple[str, str], str]) -> str:
    """Packages → lines that pip checks by their hash."""
    return "".join(
        f"{name}=={version} \\\n    --hash=sha256:{digest}\n" for (name, version), digest in packages.items()
    )


def with_hashes(document: dict[str, Any], packages: Mapping[tuple[str, str], str], version: str) -> dict[str, Any]:
    """The document of cyclonedx-py, with the version of the project and the hashes of packages, and only these: what
    else is in a virtual environment, such as pip, is not in the image."""
    document["metadata"]["component"]["version"] = version
    kept = []
    for component in document["components"]:
        name = re.sub(r"[-_.]+", "-", component["name"]).lower()
        if (digest := packages.get((name, component["version"]))) is not None:
            component["hashes"] = [{"alg": "SHA-256", "content": digest}]
            kept.append(component)
    references = {component["bom-ref"] for component in kept} | {document["metadata"]["component"]["bom-ref"]}
    document["components"] = kept
    document["dependencies"] = [
        {**entry, "dependsOn": [other for other in entry["dependsOn"] if other in references]}
        if "dependsOn" in entry
        else entry
        for entry in document["dependencies"]
        if entry["ref"] in references
    ]
    return document


def describe(python: Path, packages: Mapping[tuple[str, str], str], version: str) -> str:
    """Environment → bill of materials, as CycloneDX JSON that its schema accepts."""
    with tempfile.TemporaryDirectory() as temporary:
        raw = Path(temporary) / "bom.json"
        # Reproducible: no time, no random number. Two runs differ only where packages do.
        options = ["--output-reproducible", "--sv", "1.6", "--pyproject", ROOT / "pyproject.toml", "-o", raw]
        run(sys.executable, "-m", "cyclonedx_py", "environment", *options, python)
        document = with_hashes(json.loads(raw.read_text("utf-8")), packages, version)
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    if (error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)) is not None:
        sys.exit(f"the bill of materials is not valid CycloneDX: {error}")
    return text


def chosen_python(version: str) -> tuple[Path, str]:
    """A Python of this version, or else the running one, and its version."""
    if (python := find(version)) is not None:
        return python, version
    running = "{}.{}".format(*sys.version_info)
    if running != version:
        print(f"Python {version}, the image's, is not on this machine; taking {running}", file=sys.stderr)
    return Path(sys.executable), running


def write(folder: Path, texts: Iterable[tuple[str, str]]) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in texts:
        (folder / name).write_text(text, "utf-8")
        print(f"{folder.name}/{name}")


def main() -> None:
    dockerfile = DOCKERFILE.read_text("utf-8")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", default=argument("EXTRAS", dockerfile), help="extras of the image")
    parser.add_argument("--python", default=argument("PYTHON_VERSION", dockerfile), help="version of its Python")
    options = parser.parse_args()
    python, python_version = chosen_python(options.python)
    (version,) = VERSION.findall((ROOT / "schemas/penstock/schemas/__init__.py").read_text("utf-8"))
    backend = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["build-system"]["requires"]
    with tempfile.TemporaryDirectory() as temporary:
        image, build = Path(temporary) / "image", Path(temporary) / "build"
        packages = hashes(install(python, image, f"{ROOT}[{options.extras}]"))
        tools = hashes(install(python, build, *backend))
        described = describe(image / "bin/python", packages, version)
    write(
        ROOT / "dist",
        [
            (f"penstock-{version}.cdx.json", described),
            (f"requirements-{python_version}.txt", requirements(packages)),
            (f"build-requirements-{python_version}.txt", requirements(tools)),
        ],
    )


if __name__ == "__main__":
    main()
