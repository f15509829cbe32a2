"""A RabbitMQ node of our own, which a test may kill: its name, ports and files are shared with no other."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import uuid
from pathlib import Path

from penstock.workers.local.up.redis_server import free_port
from support.polling import SETTLE_SECONDS, until
from support.servers.processes import output_of

_PLACES = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "/opt/homebrew/sbin/rabbitmq-server")
"""Before PATH: Debian's wrapper there changes the user, who could not write to our folder."""
_CONTROL_TRIES, _CONTROL_SECONDS = 3, 40
"""Of `rabbitmqctl`, which hangs now and then on a busy machine."""


def find_rabbitmq_server() -> str | None:
    """The script that runs a node as the user of now; None where RabbitMQ is not installed."""
    places = [place for place in _PLACES if Path(place).exists()]
    return places[0] if places else shutil.which("rabbitmq-server")


class RabbitmqNode:
    """A node with its data in a folder; it may be killed and started again. Starting takes 5 to 10 seconds.

    Arguments:
        tls: files of a certificate and its key, for a second port; and of the CA that clients' certificates are of.
        management: with the management API, at `management_url`.
    """

    def __init__(self, folder: Path, tls: tuple[Path, Path, Path] | None = None, *, management: bool = False) -> None:
        self.folder, self.port = folder, free_port()
        self._management_port = free_port() if management else None
        self.management_url = f"http://127.0.0.1:{self._management_port}"
        self.tls_port, self._tls = free_port(), tls
        self._dist_port = free_port()
        self._name = f"t{uuid.uuid4().hex[:10]}@localhost"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self) -> None:
        """Start and wait until it takes connections."""
        command = find_rabbitmq_server()
        assert command is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "plugins").write_text("[].\n" if self._management_port is None else "[rabbitmq_management].\n")
        config = [f"listeners.tcp.default = 127.0.0.1:{self.port}"]
        if self._management_port is not None:
            config += [f"management.tcp.port = {self._management_port}", "management.tcp.ip = 127.0.0.1"]
        if self._tls is not None:
            certificate, key, authority = self._tls
            config += [f"listeners.ssl.default = 127.0.0.1:{self.tls_port}", f"ssl_options.certfile = {certificate}"]
            config += [f"ssl_options.keyfile = {key}", f"ssl_options.cacertfile = {authority}"]
            config += ["ssl_options.verify = verify_peer", "ssl_options.fail_if_no_peer_cert = true"]
        (self.folder / "rabbitmq.conf").write_text("\n".join(config) + "\n")
        env = os.environ | {
            "HOME": str(self.folder),  # of the Erlang cookie
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
        }
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [command], env=env, cwd=self.folder, stdout=output, stderr=output, start_new_session=True
            )
        process, log = self._process, self.folder / "output"

        def ended() -> str | None:
            return None if process.poll() is None else f"it ended: {log.read_text(errors='replace')[-2000:]}"

        until(self._answers, "the RabbitMQ node", SETTLE_SECONDS, unless=ended, pause=0.1)

    def kill(self) -> None:
        """SIGKILL to all of it, as a power cut would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stop_queue(self, queue: str) -> None:
        """Stop the queue's leader, as when most nodes of a cluster are down."""
        self._eval(f"ra:stop_server(quorum_queues, {{'%2F_{queue}', node()}}).")

    def start_queue(self, queue: str) -> None:
        self._eval(f"ra:restart_server(quorum_queues, {{'%2F_{queue}', node()}}).")

    def set_alarm(self, memory: bool = True) -> None:
        """Block publishers, as for want of memory; or of disk space."""
        self._control(*(("set_vm_memory_high_watermark", "0") if memory else ("set_disk_free_limit", "900000GB")))

    def clear_alarms(self) -> None:
        self._control("set_vm_memory_high_watermark", "0.8")
        self._control("set_disk_free_limit", "1MB")

    def close_connections(self) -> None:
        """Cut every client off."""
        self._control("close_all_connections", "cut by a test")

    def _eval(self, expression: str) -> None:
        """Run Erlang on the node."""
        assert (answer := self._control("eval", expression)) == "ok", answer

    def _control(self, *words: str) -> str:
        """Run `rabbitmqctl`, and return what it says."""
        server = find_rabbitmq_server()
        assert server is not None
        command = [str(Path(server).with_name("rabbitmqctl")), "-q", "-n", self._name, *words]
        env = os.environ | {"HOME": str(self.folder)}
        code, text = 1, ""
        for _ in range(_CONTROL_TRIES):
            try:
                code, text = output_of(command, _CONTROL_SECONDS, env=env, cwd=self.folder)
                break
            except subprocess.TimeoutExpired as error:
                text = str(error)
        assert code == 0, text
        return text.strip()

    def _answers(self) -> bool:
        """Whether it greets an AMQP client, it listens a little before; and takes those with TLS, a little later."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0) as connection:
                connection.sendall(b"AMQP\0\0\x09\x01")
                greeted = bool(connection.recv(1))
            if self._tls is not None:
                socket.create_connection(("127.0.0.1", self.tls_port), 1.0).close()
            return greeted
        except OSError:
            return False
