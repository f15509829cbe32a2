"""Make a release on this machine: version, changelog, sdist and wheel, a commit and a tag. A person pushes and uploads.

make release VERSION=0.2.0 ARGS=--dry-run    # everything in a copy of the last commit; nothing here changes
make release VERSION=0.2.0
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

VERSION_FILE = Path("schemas/penstock/schemas/__init__.py")
CHANGELOG = Path("CHANGELOG.md")
VERSION_LINE = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)
IMAGE_TAGS = {
    Path("infra/kubernetes/chart/Chart.yaml"): re.compile(r"(?<=^appVersion: ).*$", re.MULTILINE),
    Path("infra/kubernetes/base/kustomization.yaml"): re.compile(r"(?<=newTag: ).*$", re.MULTILINE),
}
"""File → where it has the version as the image's tag."""
VERSION_FORM = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:(a|b|rc)(\d+))?")
UNRELEASED = "## Unreleased\n"
EDITED = (VERSION_FILE, CHANGELOG, *IMAGE_TAGS)


class Refused(Exception):
    """The release cannot be made; the message says why and what to do."""


def order(version: str) -> tuple[int, int, int, str, int]:
    """Sort key of a version: a pre-release (0.2.0rc1) comes before its release (0.2.0).

    Raises:
        Refused: the text is not a version.
    """
    match = VERSION_FORM.fullmatch(version)
    if match is None:
        raise Refused(f"VERSION={version!r} is not a version such as 0.2.0 or 0.2.0rc1")
    major, minor, patch, stage, number = match.groups()
    return int(major), int(minor), int(patch), stage or "release", int(number or 0)


def run(*command: str | Path, folder: Path) -> str:
    """The output of a command.

    Raises:
        Refused: the command failed; the message has its output.
    """
    done = subprocess.run([str(word) for word in command], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Refused(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout.strip()


def current_version(folder: Path) -> str:
    """The version that the source states.

    Raises:
        Refused: the source states no version.
    """
    match = VERSION_LINE.search((folder / VERSION_FILE).read_text())
    if match is None:
        raise Refused(f'{VERSION_FILE} has no line __version__ = "…"')
    return match[1]


def check(folder: Path, version: str) -> None:
    """Refuse what cannot be released.

    Raises:
        Refused: the version is wrong or taken, the tree is not clean, or the changelog has nothing to release.
    """
    stated, tags = current_version(folder), run("git", "tag", "--list", folder=folder).split()
    if f"v{version}" in tags:
        raise Refused(f"the tag v{version} exists already")
    if order(version) < order(stated) or (order(version) == order(stated) and f"v{stated}" in tags):
        raise Refused(f"VERSION={version} is not above {stated}, the version of the source")
    if changed := run("git", "status", "--porcelain", folder=folder):
        raise Refused(f"the tree is not clean; commit or stash first:\n{changed}")
    changelog = (folder / CHANGELOG).read_text()
    if UNRELEASED not in changelog:
        raise Refused(f"{CHANGELOG} has no section {UNRELEASED.strip()!r}")
    if not re.split(r"^## ", changelog.partition(UNRELEASED)[2], maxsplit=1, flags=re.MULTILINE)[0].strip():
        raise Refused(f"{CHANGELOG} has nothing under {UNRELEASED.strip()!r}")


def edit(folder: Path, version: str, day: str) -> None:
    """Write the version into the source and the image's tags, and the changelog's unreleased changes under it."""
    source = folder / VERSION_FILE
    source.write_text(VERSION_LINE.sub(f'__version__ = "{version}"', source.read_text()))
    for path, tag in IMAGE_TAGS.items():
        (folder / path).write_text(tag.sub(f'"{version}"', (folder / path).read_text()))
    changelog = folder / CHANGELOG
    changelog.write_text(changelog.read_text().replace(UNRELEASED, f"{UNRELEASED}\n## {version} ({day})\n", 1))


def build(folder: Path, version: str) -> list[Path]:
    """Build the sdist and, from that, the wheel into `dist/`, and check both.

    Raises:
        Refused: a build or a check failed.
    """
    python, dist = sys.executable, folder / "dist"
    run(python, "-m", "build", "--no-isolation", "--outdir", dist, folder, folder=folder)
    made = [dist / f"penstock-{version}.tar.gz", dist / f"penstock-{version}-py3-none-any.whl"]
    if missing := [path.name for path in made if not path.is_file()]:
        raise Refused(f"the build did not make {', '.join(missing)}")
    run(python, "-m", "twine", "check", "--strict", *made, folder=folder)
    return made


def dry_run(folder: Path, version: str, day: str) -> None:
    """Edit and build a copy of the last commit, and print what a release would change."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "penstock"
        run("git", "clone", "--quiet", "--no-hardlinks", folder, copy, folder=folder)
        edit(copy, version, day)
        for path in build(copy, version):
            print(f"would build {path.name} ({path.stat().st_size // 1024} KiB); twine found no fault")
        print(run("git", "diff", "--stat", "--", *EDITED, folder=copy))
        print(f"would commit 'Release {version}' and tag it v{version}; nothing was changed")


def release(folder: Path, version: str, day: str) -> None:
    """Edit, build, commit and tag. The edits are taken back if the build fails."""
    edit(folder, version, day)
    try:
        made = build(folder, version)
    except BaseException:
        run("git", "checkout", "--quiet", "--", *EDITED, folder=folder)
        raise
    run("git", "commit", "--quiet", "-m", f"Release {version}", "--", *EDITED, folder=folder)
    run("git", "tag", "-a", f"v{version}", "-m", f"Penstock {version}", folder=folder)
    files = " ".join(f"dist/{path.name}" for path in made)
    print(f"committed and tagged v{version}; built {files}")
    print(f"next, by hand:\n    git push --follow-tags\n    {sys.executable} -m twine upload {files}")


def main() -> int:
    """Exit code 0 when the release, or its dry run, was made; 1 when it was refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", nargs="?", default="")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    folder, day = Path.cwd(), datetime.now(UTC).date().isoformat()
    try:
        if not options.version:
            raise Refused("name the version: make release VERSION=0.2.0")
        check(folder, options.version)
        (dry_run if options.dry_run else release)(folder, options.version, day)
    except Refused as refusal:
        print(f"no release: {refusal}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
