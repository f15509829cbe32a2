"""Discovery in a Django project: the kinds and handlers that commands find, and their errors where set-up fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from depot.jobs import Lend
from workers.handlers.conftest import PENSTOCK, SITE, Depot

KINDS = {
    "depot.cache.thread",
    "depot.coroutine",
    "depot.leave",
    "depot.pool",
    "depot.thread",
    "depot.wait",
    "loans.lend",
}
DEPOT = {
    "DJANGO_SETTINGS_MODULE": "depot.settings",
    "DEPOT_DATABASE": json.dumps({"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}),
    "DEPOT_CACHE": "redis://",
}


def penstock(*words: str, cwd: Path = SITE, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | DEPOT | variables
    return subprocess.run([PENSTOCK, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def app(folder: Path, modules: dict[str, str]) -> None:
    """A Django project with one app, `shop`, of these modules."""
    for name, text in {"__init__": "", "settings": "", **modules}.items():
        file = folder / "shop" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("INSTALLED_APPS = ['shop']\n" + text if name == "settings" else text)


def test_worker_runs_the_handlers_of_all_apps_and_keeps_its_log(persistent: Depot) -> None:
    assert persistent.run(Lend()) == ["lent"]
    assert "consumes depot" in persistent.log.read_text()  # though the project's LOGGING disables other loggers


def test_commands_know_the_kinds_of_all_apps() -> None:
    exported = penstock("schema", "export")
    assert exported.returncode == 0, exported.stderr
    assert set(json.loads(exported.stdout)["kinds"]) >= KINDS
    openapi = penstock("gateway", "openapi")
    assert openapi.returncode == 0, openapi.stderr
    assert all(kind in openapi.stdout for kind in KINDS)


def test_packages_of_handlers_are_imported_with_their_modules_and_without_tests(tmp_path: Path) -> None:
    job = "from penstock.schemas import Job\nclass {0}(Job, kind='shop.{1}'): ...\n"
    fails = "raise AssertionError('tests are not handlers')"
    app(
        tmp_path,
        {
            "jobs": job.format("Plain", "plain"),
            "handlers/__init__": "",
            "handlers/deep/__init__": "",
            "handlers/deep/mails": job.format("Mail", "mail"),
            "handlers/tests": fails,
            "handlers/test_mails": fails,
            "other": job.format("Other", "other"),
        },
    )
    exported = penstock("schema", "export", cwd=tmp_path, DJANGO_SETTINGS_MODULE="shop.settings")
    assert exported.returncode == 0, exported.stderr
    kinds = {kind for kind in json.loads(exported.stdout)["kinds"] if kind.startswith("shop.")}
    assert kinds == {"shop.plain", "shop.mail"}


TASKS = "TASKS = {'default': {'BACKEND': 'penstock.producers.contrib.django.tasks.PenstockBackend'}}\n"
WITH_TASKS = "INSTALLED_APPS += ['django_tasks', 'penstock.producers.contrib.django']\n"
MANAGE = (
    "import sys\nfrom django.core.management import execute_from_command_line\nexecute_from_command_line(sys.argv)\n"
)


def test_tasks_of_apps_are_kinds_where_our_backend_has_them(tmp_path: Path) -> None:
    task = "from django_tasks import task\n@task()\ndef {0}(): ...\n"
    modules = {"tasks/__init__": "", "tasks/mails": task.format("write"), "mail": task.format("post")}
    app(tmp_path, {"settings": WITH_TASKS + TASKS, **modules})
    exported = penstock(
        "schema", "export", "--import", "shop.mail", cwd=tmp_path, DJANGO_SETTINGS_MODULE="shop.settings"
    )
    assert exported.returncode == 0, exported.stderr
    assert set(json.loads(exported.stdout)["kinds"]) >= {"shop.tasks.mails.write", "shop.mail.post"}
    app(tmp_path, {"settings": "", "tasks/mails": "raise AssertionError('a module of Celery, maybe')"})
    exported = penstock("schema", "export", cwd=tmp_path, DJANGO_SETTINGS_MODULE="shop.settings")
    assert exported.returncode == 0, exported.stderr


@pytest.mark.parametrize(
    ("modules", "lines"),
    [
        (
            {"settings": WITH_TASKS + TASKS.replace("PenstockBackend", "Penstock")},
            ["penstock: TASKS['default']: its BACKEND cannot be imported: Module"],
        ),
        (
            {
                "settings": WITH_TASKS + TASKS,
                "jobs": "from penstock.schemas import Job\nclass Write(Job, kind='shop.tasks.write'): ...\n",
                "tasks": "from django_tasks import task\n@task()\ndef write(): ...\n",
            },
            ["DuplicateKind: kind 'shop.tasks.write' of shop.tasks.shop.tasks.write is already taken by shop.jobs.W"],
        ),
    ],
    ids=["backend", "kind"],
)
def test_tasks_that_cannot_be_kinds_are_named(tmp_path: Path, modules: dict[str, str], lines: list[str]) -> None:
    app(tmp_path, modules)
    refused = penstock("worker", cwd=tmp_path, DJANGO_SETTINGS_MODULE="shop.settings")
    assert refused.returncode == 2
    assert all(line in refused.stderr for line in lines), refused.stderr


@pytest.mark.parametrize("before", [("manage.py",), ("-m", "django")], ids=["manage.py", "django"])
def test_the_command_line_is_a_command_of_the_project(tmp_path: Path, before: tuple[str, ...]) -> None:
    app(
        tmp_path,
        {"settings": WITH_TASKS + TASKS, "tasks": "from django_tasks import task\n@task()\ndef write(): ...\n"},
    )
    (tmp_path / "manage.py").write_text(MANAGE)
    first = str(tmp_path / "manage.py") if before == ("manage.py",) else None
    command = [sys.executable, *([first] if first else before), "penstock", "schema", "export"]
    options = ["--settings=shop.settings", *([] if first else ["--pythonpath", str(tmp_path)])]
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "shop.tasks.write" in json.loads(done.stdout)["kinds"]


@pytest.mark.parametrize("command", [("worker", "--engine", "celery"), ("worker", "--engine", "dramatiq"), ("up",)])
def test_missing_settings_are_one_clear_error(command: tuple[str, ...], tmp_path: Path) -> None:
    refused = penstock(*command, cwd=tmp_path, DJANGO_SETTINGS_MODULE="nowhere.settings")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1] == (
        "penstock: cannot set up Django with DJANGO_SETTINGS_MODULE=nowhere.settings: ModuleNotFoundError: No module "
        "named 'nowhere'; correct the variable or the project, or run this in the folder of manage.py"
    )


def test_project_that_fails_is_reported_with_its_own_lines(tmp_path: Path) -> None:
    app(tmp_path, {"settings": "DEBUG = 1 / 0"})
    refused = penstock("dispatcher", cwd=tmp_path, DJANGO_SETTINGS_MODULE="shop.settings")
    assert refused.returncode == 2
    assert "ZeroDivisionError" in refused.stderr.splitlines()[-1]
    assert f'File "{tmp_path}/shop/settings.py", line 2' in refused.stderr
    assert "django_project.py" not in refused.stderr


def test_app_whose_handlers_cannot_be_imported_is_reported_by_module(tmp_path: Path) -> None:
    app(tmp_path, {"handlers": "import a_module_that_is_missing"})
    refused = penstock("worker", cwd=tmp_path, DJANGO_SETTINGS_MODULE="shop.settings")
    assert (refused.returncode, refused.stderr.splitlines()[-1]) == (2, "penstock: cannot import shop.handlers")
    assert "a_module_that_is_missing" in refused.stderr


def test_missing_django_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "without.py").write_text(
        "import sys\nsys.modules['django'] = None\nfrom penstock.workers.cli import main\nmain()\n"
    )
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "shop.settings"}
    command = [sys.executable, str(tmp_path / "without.py"), "worker"]
    refused = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (refused.returncode, refused.stderr) == (
        2,
        "penstock: DJANGO_SETTINGS_MODULE is 'shop.settings', and Django is not installed here; install it, or unset "
        "the variable\n",
    )


def test_nothing_of_django_is_imported_without_the_variable(tmp_path: Path) -> None:
    code = (
        "import sys; from penstock.workers.handlers.discovery import discover; discover()\n"
        "from penstock.workers.engines.inline import Inline\n"
        "with Inline(): print([name for name in sys.modules if name.split('.')[0] in ('django', 'asgiref')])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]", out.stdout


def test_testing_kit_runs_the_handlers_of_all_apps() -> None:
    code = (
        "from depot.jobs import Lend\n"
        "from penstock.producers import Producer\n"
        "from penstock.producers.testing import testing\n"
        "with testing() as penstock:\n"
        "    Producer('redis://127.0.0.1:1/0').enqueue(Lend())\n"
        "    print([ran.result for ran in penstock.drain()])"
    )
    environment = os.environ | DEPOT
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, cwd=SITE, env=environment, capture_output=True, text=True, timeout=120)
    assert out.stdout.splitlines()[-1:] == ["['lent']"], out.stderr
