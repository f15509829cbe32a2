"""A day of the shop's web backend."""

from __future__ import annotations

import time

import dramatiq
from dramatiq.results import ResultMissing

from shop import actors


def send_all() -> int:
    """Send some of everything, and wait for what has a result. Returns the price that came back."""
    pipeline = actors.price.message("a2", 7) | actors.celebrate.message({"actor_name": "pipeline"})
    pipeline.run()
    pictures = dramatiq.group(actors.resize.message(f"{number}.png") for number in range(3))
    pictures.add_completion_callback(actors.gallery.message("spring"))
    pictures.run()
    actors.invoice.send_with_options(args=("a3", 9), delay=300)
    actors.flaky.send("a4")
    actors.forbidden.send_with_options(args=("a5",), on_failure=actors.complain)
    actors.translate.send("hello")
    actors.endless.send("a6")
    actors.price.send_with_options(args=("a7", 2), on_success=actors.celebrate)
    for number in range(4):
        actors.bank.send(f"b{number}")
    late = actors.offer.message("a8")
    time.sleep(0.01)
    dramatiq.get_broker().enqueue(late)
    actors.refused.send("a9")
    priced = actors.price.send("a10", 14)
    while True:
        try:
            return int(priced.get_result())
        except ResultMissing:
            time.sleep(0.05)


EXPECTED = [
    ["celebration", "pipeline", 21],
    ["celebration", "price", 6],
    ["complaint", "forbidden", "PermissionError"],
    ["endless", "a6"],
    ["flaky", "a4", 0],
    ["flaky", "a4", 1],
    ["flaky", "a4", 2],
    ["forbidden", "a5"],
    ["gallery", "spring"],
    ["invoice", "a3", 9, "invoice"],
    ["resize", "0.png"],
    ["resize", "1.png"],
    ["resize", "2.png"],
    ["resize", "hello.png"],
    ["translate", "hello"],
    *(["bank", f"b{number}"] for number in range(4)),
]
"""Lines of the diary afterwards, in any order."""
