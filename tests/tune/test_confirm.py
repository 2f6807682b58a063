"""The winner is believed beyond noise only, and never because of its lucky trial."""

import random

import pytest

from deploy.slo.records import Bound
from deploy.slo.tune_records import Probe, Setting
from deploy.tune.confirm import Duel, chance_of, confirm
from tests.tune.beds import FakeBed

OWN, NEW = Setting(instances=1), Setting(instances=2)


def duel(own_rate: float | None, new_rate: float) -> Duel:
    bound = Bound(kind="latency", q=0.99, limit=15.0)
    return Duel(own=OWN, new=NEW, own_rate=own_rate, new_rate=new_rate, bound=bound, rounds=4)


def bed(own: float, new: float) -> FakeBed:
    return FakeBed(capacity=lambda setting: own if setting == OWN else new)


def test_the_exact_chance_of_four_against_four() -> None:
    assert chance_of([0.5, 0.6, 0.7, 0.8], [0.0, 0.1, 0.2, 0.3]) == pytest.approx(1 / 70)
    assert chance_of([0.0] * 4, [0.0] * 4) == 1.0
    assert chance_of([0.0, 0.1, 0.2, 0.3], [0.5, 0.6, 0.7, 0.8]) == 1.0


def test_a_better_setting_is_confirmed_at_its_own_rate() -> None:
    found = confirm(bed(100.0, 130.0), duel(100.0, 128.0))
    assert found.better
    assert found.rate == 128.0
    assert len(found.rounds) == 4
    assert [one.own_first for one in found.rounds] == [True, False, True, False]


def test_a_claim_that_does_not_hold_is_taken_down_a_step() -> None:
    found = confirm(bed(100.0, 130.0), duel(100.0, 134.0))
    assert found.better
    assert found.rate == pytest.approx(134.0 / 1.05)


def test_the_same_capacity_is_not_better() -> None:
    assert not confirm(bed(100.0, 100.0), duel(98.0, 99.0)).better


def test_a_claim_that_was_luck_comes_down_to_the_own_rate() -> None:
    found = confirm(bed(100.0, 100.0), duel(100.0, 110.0))
    assert not found.better
    assert "did not hold" in found.reason


def test_rounds_in_which_the_client_was_the_limit_are_said_to_tell_nothing() -> None:
    class Hindered(FakeBed):
        def probe(self, rate: float) -> Probe:
            kept = None if self.loaded[-1] == OWN else True
            return Probe(rate=rate, kept=kept, reason="", queries=1000, over=0, p99=10.0)

    found = confirm(Hindered(capacity=lambda _: 0.0), duel(100.0, 128.0))
    assert not found.better
    assert "in 4 of 4 rounds the client was the limit" in found.reason
    assert "luck" not in found.reason


def test_noise_is_called_better_in_at_most_one_of_twenty() -> None:
    draw = random.Random(1)

    class Noisy(FakeBed):
        def probe(self, rate: float) -> Probe:
            over = draw.choice((0, 0, 5, 10, 15))
            return Probe(rate=rate, kept=over <= 10, reason="", queries=1000, over=over, p99=10.0)

    wrong = sum(confirm(Noisy(), duel(None, 100.0)).better for _ in range(300))
    assert wrong <= 0.05 * 300
