"""`penstock adopt --dramatiq`: a module of typed jobs, written from the actors of an application."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from adopted_shop import EXAMPLE, AdoptedShop
from support.polling import WAIT_SECONDS, until

PENSTOCK = Path(sys.executable).parent / "penstock"


@pytest.mark.slow
@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_written_jobs_call_the_functions_of_actors(shop: AdoptedShop) -> None:
    stack, env = shop.stack, shop.env | {"PYTHONPATH": os.pathsep.join([str(EXAMPLE), str(shop.folder)])}
    command = [PENSTOCK, "adopt", "--dramatiq", "shop.actors", "--output", "shop_jobs.py"]
    done = subprocess.run(command, env=os.environ | env, cwd=shop.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    queues = f"{shop.mails},{shop.images}"
    stack.run(["worker", "--engine", "dramatiq", "--queues", queues, "--import", "shop_jobs"], **env)
    enqueue = "import shop_jobs\nfrom penstock.producers import Producer\nproducer = Producer.from_settings()\n"
    settings = {**shop.penstock(), "PENSTOCK_DATABASE_URL": stack.settings.database_url, **env}
    ids = shop.call(
        enqueue
        + "answer = [producer.enqueue(job).id for job in (shop_jobs.Price(order='a', pieces=4), "
        + "shop_jobs.Gallery(name='b'), shop_jobs.Translate(text='c'), shop_jobs.Forbidden(order='d'))]",
        **settings,
    )
    assert stack.producer.handle(ids[0]).result(WAIT_SECONDS) == 12
    # A coroutine runs on the worker's loop, and what it sends goes to the application's own broker.
    until(lambda: {("gallery", "b"), ("translate", "c")} <= {tuple(line) for line in shop.noted()})
    forbidden = stack.producer.handle(ids[3]).wait(WAIT_SECONDS)
    assert (forbidden.state, stack.row(ids[3]).attempt) == ("dead", 1)  # its `throws` gives up
