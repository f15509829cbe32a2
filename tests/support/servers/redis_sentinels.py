"""A Redis with a replica and three sentinels, all of a test's own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import redis

from penstock.workers.local.up.redis_server import RedisServer, find_redis_server, free_port, redis_answers
from support.polling import WAIT_SECONDS, until

MASTER = "penstock"
_DOWN_MILLISECONDS = 1000


class RedisSentinels:
    """`master` is the server that begins as one; `kill_master` makes the replica one, some seconds later."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.master, self.replica = RedisServer(folder / "master"), RedisServer(folder / "replica")
        self.ports = [free_port() for _ in range(3)]
        self._sentinels: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in self.ports)}/0?master={MASTER}"

    def start(self) -> None:
        """Start all, and wait until the replica follows and the sentinels know each other."""
        self.master.start()
        self.replica.start()
        with redis.Redis(port=self.replica.port) as client:
            client.replicaof("127.0.0.1", self.master.port)
            until(lambda: client.info("replication")["master_link_status"] == "up", "replication")
        for port in self.ports:
            folder = self.folder / f"sentinel-{port}"
            folder.mkdir()
            config = [
                f"port {port}",
                "bind 127.0.0.1",
                f"dir {folder}",
                f"logfile {folder}/log",
                f"sentinel monitor {MASTER} 127.0.0.1 {self.master.port} 2",
                f"sentinel down-after-milliseconds {MASTER} {_DOWN_MILLISECONDS}",
                f"sentinel failover-timeout {MASTER} 5000",
            ]
            (folder / "conf").write_text("\n".join(config) + "\n")
            command = [str(find_redis_server()), str(folder / "conf"), "--sentinel"]
            self._sentinels.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True))
        for port in self.ports:
            until(lambda port=port: redis_answers(port), "a sentinel")
            with redis.Redis(port=port, decode_responses=True) as client:
                until(lambda client=client: self._knows_all(client), "sentinels that know each other")

    def kill_master(self) -> None:
        """SIGKILL, when the replica has all that is there by now."""
        with redis.Redis(port=self.master.port) as client:
            client.set("penstock-test-mark", 1)
            assert client.wait(1, int(WAIT_SECONDS * 1000)) == 1
            self.master.kill()

    def wait_for_promotion(self) -> None:
        with redis.Redis(port=self.replica.port) as client:
            until(lambda: client.info("replication")["role"] == "master", "a promoted replica")

    def stop(self) -> None:
        for process in self._sentinels:
            process.terminate()
        for process in self._sentinels:
            process.wait()
        self.master.stop()
        self.replica.stop()

    def _knows_all(self, client: redis.Redis) -> bool:
        [master] = client.sentinel_masters().values()
        return (master["num-other-sentinels"], master["num-slaves"], master["flags"]) == (2, 1, "master")
