"""Settings: what wins over what, and errors that name file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.config.errors import ConfigError
from penstock.config.sections.schedules import ScheduleSettings, WrongSchedule
from penstock.config.settings import load_settings, redact_url, settings_in_force


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PENSTOCK_CONFIG", raising=False)


def write(text: str, name: str = "penstock.toml") -> Path:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_settings_without_a_file_are_the_defaults() -> None:
    settings = load_settings()
    assert settings.broker_url.startswith("redis://127.0.0.1")
    assert settings.queue("any").engine == "celery"


def test_the_file_is_found_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    write('broker_url = "redis://file"\nlease_seconds = 3\n[queues.emails]\nconcurrency = 7\n')
    monkeypatch.setenv("PENSTOCK_BROKER_URL", "amqp://environment")
    settings = load_settings()
    assert (settings.broker_url, settings.lease_seconds) == ("amqp://environment", 3)
    assert settings.queue("emails").concurrency == 7


def test_config_penstock_toml_and_a_named_file_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    write("lease_seconds = 4", "config/penstock.toml")
    assert load_settings().lease_seconds == 4
    write("lease_seconds = 5", "other/my.toml")
    assert load_settings("other/my.toml").lease_seconds == 5
    monkeypatch.setenv("PENSTOCK_CONFIG", "other/my.toml")
    assert load_settings().lease_seconds == 5
    monkeypatch.setenv("PENSTOCK_CONFIG", "nowhere.toml")
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such file"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lease_secs = 3", r"penstock\.toml:1: lease_secs: unknown setting"),
        ("\n\n[queues.emails]\nengine = 'celery'\nspeed = 1\n", r"penstock\.toml:5: queues\.emails\.speed: unknown"),
        ("[queues.emails]\nengine = 'rq'\n", r"penstock\.toml:2: queues\.emails\.engine: .*'celery' or 'dramatiq'"),
        ("# one\n[queues]\nemails = { concurrency = 0 }", r"penstock\.toml:3: queues\.emails\.concurrency"),
        ("max_jobs = 0", r"penstock\.toml:1: max_jobs: Input should be greater than or equal to 1"),
        ("max_memory = 0", r"penstock\.toml:1: max_memory: Input should be greater than or equal to 1"),
        ("max_memory = '1 pound'", r"max_memory: '1 pound' is not a size; write 512MB, 1GiB or a number of bytes"),
        ("max_memory = true", r"max_memory: True is not a size"),
        ("lease_seconds = -1", r"penstock\.toml:1: lease_seconds"),
        ("this is = = not toml", r"penstock\.toml: not valid TOML.*line 1"),
    ],
)
def test_a_wrong_setting_is_named_with_file_and_line(text: str, message: str) -> None:
    write(text)
    with pytest.raises(ConfigError, match=message):
        load_settings()


def test_a_wrong_schedule_is_kept_as_such_and_stops_nothing() -> None:
    write("[schedules.good]\nkind='x'\ncron='@daily'\n[schedules.bad]\nkind='x'\ncron='@daily'\ntimezone='Mars'")
    settings = load_settings()
    assert settings.file == Path("penstock.toml")
    assert isinstance(settings.schedules["good"], ScheduleSettings)
    bad = settings.schedules["bad"]
    assert isinstance(bad, WrongSchedule)
    assert (bad.key, bad.error) == (
        "timezone",
        "timezone: unknown time zone 'Mars'; use an IANA name such as Europe/Berlin",
    )


def test_several_wrong_settings_are_all_named() -> None:
    write("one = 1\ntwo = 2\n")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert str(caught.value).splitlines() == [
        "penstock.toml:1: one: unknown setting",
        "penstock.toml:2: two: unknown setting",
    ]


def test_a_wrong_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_LEASE_SECONDS", "soon")
    with pytest.raises(ConfigError, match="PENSTOCK_LEASE_SECONDS"):
        load_settings()


@pytest.mark.parametrize(
    ("url", "output"),
    [
        ("redis://user:s3cret@host:6379/0", "redis://user:***@host:6379/0"),
        ("redis://:s3cret@host/0", "redis://:***@host/0"),
        ("redis://host/0", "redis://host/0"),
        ("postgresql+psycopg://u:p%40ss@h/db?x=1", "postgresql+psycopg://u:***@h/db?x=1"),
    ],
)
def test_a_password_is_not_shown(url: str, output: str) -> None:
    assert redact_url(url) == output


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MB", 512_000_000), ("1GiB", 2**30), ("1.5 Gi", 1.5 * 2**30), ("100k", 100_000), ("4096", 4096), ("7 B", 7)],
)
def test_sizes_have_units(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv("PENSTOCK_MAX_MEMORY", text)
    monkeypatch.setenv("PENSTOCK_MAX_JOBS", "7")
    settings = load_settings()
    assert (settings.max_memory, settings.max_jobs) == (size, 7)
    write(f"max_memory = {size:.0f}")
    monkeypatch.delenv("PENSTOCK_MAX_MEMORY")
    assert load_settings().max_memory == size


def test_a_size_beyond_all_numbers_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_MAX_MEMORY", "9" * 400)
    with pytest.raises(ConfigError, match=r"max_memory: .*is not a size"):
        load_settings()


def test_settings_in_force_have_their_source_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text(
        'max_crashes = 7\nstorage_url = "s3://a:b@bucket/p?endpoint_url=http://h&secret_key=hush"\n'
        '[hooks.ops]\nsecret = ["aGFsbG8=", "${OPS}"]\n[syncs.x]\nurl = "http://h/"\ntable = "t"\n'
        'headers = { Authorization = "Bearer hush" }\n'
    )
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", "sqlite:////data/ledger.db")
    monkeypatch.setenv("PENSTOCK_TOKEN_SECRET", "hush-hush-hush-hush")
    rows = {row.name: row for row in settings_in_force(load_settings(file))}
    assert (rows["max_crashes"].value, rows["max_crashes"].source) == (7, f"{file}:1")
    assert (rows["grace_seconds"].value, rows["grace_seconds"].source) == (30.0, "default")
    assert rows["database_url"][1:] == ("sqlite:////data/ledger.db", "PENSTOCK_DATABASE_URL")
    assert rows["storage_url"].value == "s3://a:***@bucket/p?endpoint_url=http://h&secret_key=***"
    assert rows["hooks.ops.secret"].value == ["***", "${OPS}"]
    assert rows["syncs.x.headers"].value == {"Authorization": "***"}
    assert "hush" not in str(rows)
    assert rows["retention.succeeded"].value == "1w"


@pytest.mark.parametrize(
    ("alert", "words"),
    [
        ('when = "depht"\nabove = 1', "alerts.a.when: Input should be 'oldest_waiting'"),
        ('when = "depth"', "alerts.a: depth needs above"),
        ('when = "depth"\nabove = "10m"', "above of depth is a number"),
        ('when = "oldest_waiting"\nabove = "soon"', "'soon' is not a duration"),
        ('when = "error_rate"\nabove = 1.5', "a share of the attempts"),
        ('when = "no_dispatcher"\nabove = 1', "above does not go with no_dispatcher"),
        ('when = "depth"\nabove = 1\nkind = "x"', "kind goes with dead_letters, error_rate"),
        ('when = "dead_letters"\nover = "5s"', "from 1m up"),
        (
            'when = "no_dispatcher"\nnotify = "opz"',
            "no [hooks.opz], and an address has an @; did you mean 'ops'?",
        ),
        ('when = "no_dispatcher"\nnotify = "a@b"', "'a@b' is not an e-mail address"),
        ('when = "no_dispatcher"\nnotify = "acme"', "for the jobs of its tenants alone"),
        ('when = "no_dispatcher"\nnotify = "bare"', "[hooks.bare] has no url"),
        ('when = "no_dispatcher"\nwho = "x"', "alerts.a.who: unknown setting"),
    ],
)
def test_a_wrong_alert_is_refused_with_its_line(tmp_path: Path, alert: str, words: str) -> None:
    file = tmp_path / "penstock.toml"
    hooks = 'secret = "aGFsbG8="\n'
    file.write_text(
        f'[hooks.ops]\nurl = "https://h.example"\n{hooks}[hooks.bare]\n{hooks}'
        f'[hooks.acme]\nurl = "https://h.example"\ntenants = ["acme"]\n{hooks}[alerts.a]\n{alert}\n'
    )
    with pytest.raises(ConfigError) as raised:
        load_settings(file)
    assert words in str(raised.value)
    line = int(str(raised.value).partition(f"{file}:")[2].partition(":")[0])
    assert line >= 10
