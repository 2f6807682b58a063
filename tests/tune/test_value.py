"""The highest rate that is kept, and how little work a hopeless setting gets."""

import pytest

from deploy.slo.tune_records import Probe
from deploy.tune.value import RESOLUTION, Goal, measure


class Server:
    """Keeps rates up to `most`; the client can send up to `client_most`. The first `stumbles` probes prove nothing."""

    def __init__(
        self,
        most: float,
        *,
        client_most: float = float("inf"),
        stumbles: int = 0,
        slope: float = 1000.0,
        hiccups: tuple[int, ...] = (),
    ) -> None:
        self.most, self.client_most, self.stumbles, self.slope = most, client_most, stumbles, slope
        self.hiccups = hiccups
        self.rates: list[float] = []

    def probe(self, rate: float) -> Probe:
        self.rates.append(rate)
        self.stumbles -= 1
        kept: bool | None = rate <= self.most
        if rate > self.client_most or self.stumbles >= 0:
            kept = None
        p99 = 10.0 if rate <= self.most else 10.0 + self.slope * (rate / self.most - 1)
        if kept and len(self.rates) in self.hiccups:
            return Probe(rate=rate, kept=False, reason="", queries=100, over=12, p99=120.0)
        return Probe(rate=rate, kept=kept, reason="", queries=100, over=0 if kept else 50, p99=p99)


@pytest.mark.parametrize("most", [3.0, 70.0, 100.0, 140.0, 900.0])
def test_the_rate_is_found_within_the_resolution(most: float) -> None:
    server = Server(most)
    value = measure(server.probe, Goal(start=100.0, best=None, limit_ms=15.0))
    assert value.rate is not None
    assert most / RESOLUTION <= value.rate <= most
    assert (value.score, value.ended_early) == (value.rate, False)


def test_a_setting_that_beats_the_best_is_measured_to_the_end() -> None:
    value = measure(Server(150.0).probe, Goal(start=10.0, best=100.0, limit_ms=15.0))
    assert 150.0 / RESOLUTION <= value.score <= 150.0


def test_a_hopeless_setting_gets_three_probes_and_a_graded_score() -> None:
    scores = []
    for most in (95.0, 70.0, 40.0, 5.0):
        server = Server(most)
        value = measure(server.probe, Goal(start=10.0, best=100.0, limit_ms=15.0))
        assert value.ended_early
        assert len(server.rates) <= 3
        assert server.rates[0] == 100.0
        scores.append(value.score)
    assert scores == sorted(scores, reverse=True)
    assert scores[0] < 100.0
    assert scores[-1] < scores[1], "the sampler learns how hopeless it is"


@pytest.mark.parametrize("most", [85.0, 70.0, 55.0])
def test_how_late_the_answers_were_says_where_to_probe_next(most: float) -> None:
    # Rate 100 for one second: the queue is (1 - most / 100) s behind at its end.
    server = Server(most, slope=1000.0 * most / 100.0)
    value = measure(server.probe, Goal(start=10.0, best=100.0, limit_ms=10.0))
    assert value.rate == pytest.approx(most / RESOLUTION)
    assert len(server.rates) == 2


def test_a_near_miss_is_probed_near_the_best() -> None:
    near = Server(95.0, slope=100.0)
    assert measure(near.probe, Goal(start=10.0, best=100.0, limit_ms=15.0)).rate == pytest.approx(93.0)


@pytest.mark.parametrize("hiccup", range(1, 9))
def test_a_hiccup_of_the_machine_is_not_taken_for_the_settings_limit(hiccup: int) -> None:
    server = Server(140.0, hiccups=(hiccup,))
    value = measure(server.probe, Goal(start=100.0, best=None, limit_ms=15.0))
    assert value.rate is not None
    assert 140.0 / RESOLUTION <= value.rate <= 140.0
    best = measure(Server(140.0, hiccups=(1,)).probe, Goal(start=10.0, best=100.0, limit_ms=15.0))
    assert not best.ended_early


def test_nothing_is_kept_at_any_rate() -> None:
    server = Server(0.0001)
    value = measure(server.probe, Goal(start=100.0, best=None, limit_ms=15.0))
    assert (value.rate, value.score) == (None, 0.0)
    assert min(server.rates) >= 100.0 / 64


def test_a_client_that_cannot_send_faster_is_not_the_servers_limit() -> None:
    value = measure(Server(1000.0, client_most=200.0).probe, Goal(start=100.0, best=None, limit_ms=15.0))
    assert value.client_limited
    assert value.rate is not None
    assert 200.0 / RESOLUTION <= value.rate <= 200.0


def test_a_stumble_of_the_client_is_asked_again_and_forgotten() -> None:
    value = measure(Server(150.0, stumbles=1).probe, Goal(start=10.0, best=100.0, limit_ms=15.0))
    assert not value.client_limited
    assert value.score > 140.0
