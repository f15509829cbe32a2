"""Every command sent to Redis is in Redis 6.2 (and so in every Valkey)."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[4]
SINCE = {
    **dict.fromkeys(["EVAL", "PUBLISH", "TIME"], "2.6"),
    **dict.fromkeys(["DEL", "EXEC", "EXISTS", "EXPIRE", "GET", "INFO", "MULTI", "PING", "SET", "SUBSCRIBE"], "1.0"),
    **dict.fromkeys(["AUTH", "LLEN", "LPOP", "LRANGE", "LREM", "SADD", "SELECT"], "1.0"),
    "RPUSH": "2.4",  # of several values; of one, 1.0
    **dict.fromkeys(["ZCARD", "ZRANGE"], "1.2"),
    **dict.fromkeys(
        ["HDEL", "HGET", "HGETALL", "HMGET", "UNSUBSCRIBE", "ZADD", "ZREM", "ZREMRANGEBYSCORE", "ZSCORE"], "2.0"
    ),
    **dict.fromkeys(["CLIENT ID", "CLIENT UNBLOCK"], "5.0"),
    "SENTINEL GET-MASTER-ADDR-BY-NAME": "2.8",
    "ZRANGEBYSCORE": "1.0",
    "PEXPIRE": "2.6",
    "SCAN": "2.8",
    "HSET": "4.0",  # of several fields; of one, 2.0
    "LPOS": "6.0",
    **dict.fromkeys(["XACK", "XADD", "XCLAIM", "XDEL", "XGROUP CREATE", "XGROUP DELCONSUMER"], "5.0"),
    **dict.fromkeys(
        ["XINFO CONSUMERS", "XINFO GROUPS", "XINFO STREAM", "XLEN", "XRANGE", "XREAD", "XREADGROUP"], "5.0"
    ),
    "XREVRANGE": "5.0",
    "XPENDING": "6.2",  # its option IDLE; without, 5.0
}
SUBCOMMANDS = {"CLIENT", "SENTINEL", "XGROUP", "XINFO"}
CALLS = [
    re.compile(r"""\bpack\(\s*"([A-Z]+)"(?:,\s*"([A-Z-]+)")?"""),
    re.compile(r"""redis\.p?call\('([A-Z]+)'(?:, '([A-Z]+)')?"""),
    re.compile(r"""\(\(?"((?:AUTH|SELECT|EVAL|XLEN|XPENDING|SENTINEL))"(?:,\s*"([A-Z-]+)")?"""),
    re.compile(r"""\{'(X[A-Z]+)'()"""),
]


def commands(source: str) -> set[str]:
    """The commands in a file's text, with the subcommand of those that have one."""
    commands = (match for call in CALLS for match in call.findall(source))
    return {f"{name} {second}" if name in SUBCOMMANDS else name for name, second in commands}


def test_commands_are_not_newer_than_redis_6_2() -> None:
    files = [file for room in ("producers", "workers") for file in sorted((ROOT / room).rglob("*.py"))]
    used = {command: file for file in files for command in commands(file.read_text())}
    assert {"XADD", "XREADGROUP", "XCLAIM", "CLIENT UNBLOCK", "SENTINEL GET-MASTER-ADDR-BY-NAME"} <= used.keys()
    unknown = {command: str(file) for command, file in used.items() if command not in SINCE}
    assert not unknown, f"look up since when Redis has them: {unknown}"
    assert {command for command in used if tuple(map(int, SINCE[command].split("."))) > (6, 2)} == set()
