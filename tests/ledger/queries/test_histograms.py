from __future__ import annotations

import math
import random

import pytest

from penstock.ledger.rows.rates.histograms import Histogram


def histogram(*seconds: float) -> Histogram:
    result = Histogram()
    result.add(list(seconds))
    return result


@pytest.mark.parametrize("scale", [0.0005, 0.03, 1.0, 400.0, 20_000.0])
def test_percentiles_are_within_ten_percent(scale: float) -> None:
    dice = random.Random(4)
    values = sorted(max(dice.lognormvariate(0, 1.2) * scale, 0.0002) for _ in range(5000))
    values = [round(value, 6) for value in values]
    for share, matching in zip((0.5, 0.95, 0.99), histogram(*values).percentiles((0.5, 0.95, 0.99)), strict=True):
        exact = values[round(share * 5000) - 1]
        assert matching == pytest.approx(exact, rel=0.1), (share, exact)


def test_histograms_that_are_added_up_are_that_of_all_values() -> None:
    dice = random.Random(5)
    values = [dice.expovariate(2) for _ in range(3000)]
    parts = Histogram()
    for start in range(0, 3000, 100):
        stored = histogram(*values[start : start + 100])
        parts.merge([Histogram.unpack(stored.pack(), stored.milliseconds)])
    whole = histogram(*values)
    assert parts.packed == whole.packed
    assert parts.summary([])[1] == pytest.approx(sum(values) / 3000, rel=0.01)


def test_a_value_below_zero_counts_as_none_and_one_beyond_the_last_bucket_is_in_it() -> None:
    [low] = histogram(-5.0).percentiles([0.5])
    [high] = histogram(9e8).percentiles([0.5])
    assert low is not None
    assert low < 0.0001
    assert high is not None
    assert high > 5 * 86_400
    assert histogram(-5.0, 1.0).sum == 1.0


def test_an_empty_histogram_has_no_percentiles() -> None:
    assert Histogram().percentiles((0.5, 0.99)) == [None, None]
    assert Histogram().summary([0.5]) == ([None], None)
    assert Histogram().pack() is None
    assert Histogram.unpack(None).packed == 0


@pytest.mark.parametrize("most", [1, 30, 8_000_000_000])
def test_percentiles_are_those_of_counting_bucket_by_bucket(most: int) -> None:
    dice = random.Random(most)
    for _ in range(50):
        lowest, highest = sorted(dice.sample(range(124), 2))
        counts = {bucket: dice.randint(0, most) for bucket in range(lowest, highest)} | {highest: 1}
        whole = Histogram(sum(count << (40 * bucket) for bucket, count in counts.items()))
        shares = sorted(dice.random() for _ in range(5))
        ranks = [max(math.ceil(share * sum(counts.values())), 1) for share in shares]
        expected = [
            next(bucket for bucket in counts if sum(counts[b] for b in counts if b <= bucket) >= r) for r in ranks
        ]
        assert whole.percentiles(shares) == pytest.approx([0.0001 * 1.2 ** (bucket - 0.5) for bucket in expected])
