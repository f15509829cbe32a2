"""The demo's folder: inputs, a `penstock.toml`, and two servers in place of external ones."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from penstock.config.settings import Settings, load_settings
from penstock.producers.storage import FileStorage
from penstock.workers.local.demo.world import inputs
from penstock.workers.local.demo.world.customers_api import PAGE, CustomersApi
from penstock.workers.local.demo.world.mailbox import Mailbox
from penstock.workers.local.demo.world.orders import make_orders
from penstock.workers.local.up.layout import Layout, plan
from penstock.workers.local.up.redis_server import free_port

TEMPLATE = Path(__file__).with_name("penstock.toml")
LEASE_SECONDS = 5.0
"""Shorter than the default of 15, so that a killed worker's job is soon taken over."""
PHOTO, PDF = "incoming/valley.jpg", "incoming/delivery-note.pdf"
IMPORTS = ("penstock.workers.local.demo.jobs", "penstock.workers.local.demo.nightly")
EVERY_SECONDS = 5
"""Between two firings of the demo's schedule."""


@dataclass(frozen=True)
class Stage:
    """The environment of the demo.

    Attributes:
        uploads: the bytes that were put into the storage, by key.
        order_cents: the sum of all orders.
    """

    layout: Layout
    storage: FileStorage
    api: CustomersApi
    mailbox: Mailbox
    uploads: Mapping[str, bytes]
    order_cents: int

    @property
    def folder(self) -> Path:
        return self.layout.folder

    @property
    def settings(self) -> Settings:
        return self.layout.settings

    @property
    def customers(self) -> Path:
        """The database that the sync fills."""
        return self.folder / "customers.db"


@contextlib.contextmanager
def set_stage(folder: Path) -> Iterator[Stage]:
    """Make the inputs and start the servers; they stop when the block ends."""
    storage, uploads = FileStorage(folder / "storage"), {PHOTO: inputs.photo(), PDF: inputs.pdf()}
    for key, content in uploads.items():
        storage.write(key, io.BytesIO(content))
    cents = make_orders(folder / "orders.db")
    api, mailbox = CustomersApi(), Mailbox(folder / "mailbox")
    api.start()
    mailbox.start()
    try:
        config = folder / "penstock.toml"
        config.write_text(_config(folder, api, mailbox), "utf-8")
        with _own_environment() as environment:
            settings = load_settings(config)
            ports = {"flower_port": free_port(), "gateway_port": free_port()}
            layout = plan(settings, folder, IMPORTS, config=config, environment=environment, **ports)
            yield Stage(layout, storage, api, mailbox, uploads, cents)
    finally:
        mailbox.stop()
        api.stop()


@contextlib.contextmanager
def _own_environment() -> Iterator[dict[str, str]]:
    """Hide the caller's Penstock settings and proxies: the demo touches nothing but what it made."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(("PENSTOCK_", "FLOWER_")) or name.lower().endswith("_proxy"):
            del os.environ[name]
    try:
        yield dict(os.environ)
    finally:
        os.environ.clear()
        os.environ.update(before)


def _config(folder: Path, api: CustomersApi, mailbox: Mailbox) -> str:
    values = {
        "lease_seconds": LEASE_SECONDS,
        "smtp_url": mailbox.url,
        "orders_url": f"sqlite:///{folder}/orders.db",
        "customers_url": f"sqlite:///{folder}/customers.db",
        "customers_api": api.url,
        "page": PAGE,
        "every_seconds": EVERY_SECONDS,
    }
    template = Template(TEMPLATE.read_text("utf-8"))
    # A JSON string or number is one in TOML, too.
    return template.substitute({name: json.dumps(value, ensure_ascii=False) for name, value in values.items()})
