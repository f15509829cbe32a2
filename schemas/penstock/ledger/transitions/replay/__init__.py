"""Dead and other ended jobs, tried again: replays with or without an edit, retries; and discards, which close them."""

from penstock.ledger.transitions.replay.discard import discard
from penstock.ledger.transitions.replay.plan import ReplayResult
from penstock.ledger.transitions.replay.replay import replay, replay_ids, replay_one
from penstock.ledger.transitions.replay.retry import retry

__all__ = ["ReplayResult", "discard", "replay", "replay_ids", "replay_one", "retry"]
