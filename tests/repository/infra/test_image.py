"""`infra/docker/Dockerfile`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from repository.infra.files import DOCKERFILE, ROOT


def hadolint(text: str) -> str:
    """Findings of hadolint in a Dockerfile, a line each; skips the test where the program does not run."""
    program = Path(sys.executable).parent / "hadolint"
    try:
        subprocess.run([program, "--version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"hadolint does not run here: {error}")
    command = [program, "--no-color", "--format", "tty", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True).stdout


def test_the_linter_of_images_has_no_finding() -> None:
    text = DOCKERFILE.read_text()
    assert hadolint(text) == ""
    assert "hadolint ignore" not in text
    assert "DL3003" in hadolint(f"{text}RUN cd /tmp && true\n")


def test_the_image_is_built_in_stages_and_runs_as_a_fixed_user() -> None:
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    instructions = [name for name, _ in steps]
    stages = [number for number, name in enumerate(instructions) if name == "FROM"]
    final = dict(steps[stages[-1] :])
    assert len(stages) == 2
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", final["USER"])
    assert final["USER"].split(":")[0] in final["RUN"]
    assert json.loads(final["ENTRYPOINT"]) == ["penstock"]
    assert "ADD" not in instructions
    assert "HEALTHCHECK" not in instructions


def test_the_image_is_built_by_hash_where_the_hashes_are() -> None:
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^RUN --mount=\S+ +(.+)$", text, re.MULTILINE)
    by_hash, _, otherwise = command.partition("else")
    installs = [step for step in by_hash.split("&&") if re.search(r"pip (install|wheel)", step)]
    assert installs
    for step in installs:
        # The wheel of this repository has no hash, and brings nothing else.
        assert "--require-hashes" in step or "--no-deps" in step
    assert all("--no-build-isolation" in step for step in installs if "pip wheel" in step)
    assert "-c constraints.txt" in otherwise


def test_flower_s_volume_belongs_to_the_user_of_the_image() -> None:
    from penstock.workers.engines.celery.flower.server import FOLDER

    text = DOCKERFILE.read_text()
    (workdir,) = re.findall(r"^WORKDIR (/var\S+)$", text, re.MULTILINE)
    assert f"install -d -o penstock -g penstock -m 0700 {workdir}/{FOLDER.parent}" in text


def test_files_that_the_image_copies_exist_and_are_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    sources = [source for copy in copies for source in copy.split()]
    assert {"pyproject.toml", "schemas", "producers", "workers", "config"} <= set(sources)
    for source in sources:
        assert "*" in source or (ROOT / source).exists()  # a pattern is for what a verb makes
        assert f"!{source}" in ignored


def test_the_image_s_extras_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (chosen,) = re.findall(r"^ARG EXTRAS=(.+)$", DOCKERFILE.read_text(), re.MULTILINE)
    everything = re.fullmatch(r"penstock\[(.+)\]", extras["all"][0])
    assert everything is not None
    assert set(chosen.split(",")) == set(everything[1].split(",")) - {"embedded"}
