"""Redis Sentinel: a URL that names the sentinels, and asking them which server is the master now.

    redis+sentinel://[user:password@]host:port[,host:port…]/db?master=NAME

User and password are the servers'; `sentinel_username` and `sentinel_password` in the query are the sentinels' own.
`rediss+sentinel://` speaks TLS to both. `sentinel://`, as kombu writes it, means the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from penstock.config.errors import ConfigError

SCHEMES = ("redis+sentinel", "rediss+sentinel", "sentinel")
_PORT = 26379
_OURS = ("master", "master_name", "sentinel_username", "sentinel_password")

Ask = Callable[[str, tuple[str, ...]], Any]
"""Connects to a `redis://` URL, sends a command there, and returns the reply. Raises what redis-py raises."""


def is_sentinel(url: str) -> bool:
    return urlsplit(url).scheme in SCHEMES


class Sentinels:
    """The sentinels of a URL.

    Attributes:
        hosts: `host:port` of each, the one that answered last at the front.
        master: the name under which they watch the master.

    Raises:
        ConfigError: the URL names no master, or no host.
    """

    def __init__(self, url: str) -> None:
        # kombu gives each host a URL of its own: sentinel://a:26379;sentinel://b:26379
        parts = urlsplit(url.replace(";sentinel://", ","))
        self._secure = parts.scheme == "rediss+sentinel"
        account, _, hosts = parts.netloc.rpartition("@")
        self._account = f"{account}@" if account else ""
        self.hosts = [host if _has_port(host) else f"{host}:{_PORT}" for host in hosts.split(",") if host]
        query = dict(parse_qsl(parts.query))
        self.master = query.get("master") or query.get("master_name") or ""
        if not self.hosts or not self.master:
            raise ConfigError(
                f"broker URL of Redis Sentinel at {hosts or 'no host'}: "
                "it is redis+sentinel://host:port,host:port/0?master=NAME"
            )
        self._own = [query.get("sentinel_username", ""), query.get("sentinel_password", "")]
        self._rest = {key: value for key, value in query.items() if key not in _OURS}
        self._path = parts.path
        self.address = f"sentinels {', '.join(self.hosts)} (master {self.master})"

    def find(self, ask: Ask) -> str:
        """The URL of the master, of the first sentinel that knows one.

        Raises:
            OSError: none does.
        """
        problems = []
        for host in list(self.hosts):
            try:
                address = ask(self._sentinel(host), ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.master))
            except Exception as error:
                problems.append(str(error))
                continue
            if address:
                self.hosts = [host, *(other for other in self.hosts if other != host)]
                name, port = (part.decode() for part in address)
                name = f"[{name}]" if ":" in name else name
                return self._url(f"{self._account}{name}:{port}{self._path}")
            problems.append(f"{host} knows no master called {self.master!r}")
        raise OSError("; ".join(problems))

    def kombu_url(self) -> str:
        """URL for kombu; its transport option `master_name` is the master's name."""
        query = f"?{urlencode(self._rest)}" if self._rest else ""
        return ";".join(f"sentinel://{self._account}{host}{self._path}" for host in self.hosts) + query

    def kombu_options(self) -> dict[str, Any]:
        user, password = self._own
        own = {key: value for key, value in (("username", user), ("password", password)) if value}
        return {"master_name": self.master, "sentinel_kwargs": own}

    def _sentinel(self, host: str) -> str:
        user, password = (quote(part, safe="") for part in self._own)
        return self._url(f"{user}:{password}@{host}" if password else host)

    def _url(self, rest: str) -> str:
        query = f"?{urlencode(self._rest)}" if self._rest else ""
        return f"{'rediss' if self._secure else 'redis'}://{rest}{query}"


def _has_port(host: str) -> bool:
    return host.rpartition(":")[2].isdigit() and not host.endswith("]")
