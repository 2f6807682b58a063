"""Few arrivals: runs that end by the clock, and stalls that a run meets early, simulated on a clock of their own."""

from typing import cast

import numpy as np
import pytest

from benchmarks.slo_low_rates import P99, RATES, Served, servers, simulate
from deploy.evidence import Verdict


def verdicts(what: str, *, rate: float, seconds: float, runs: int) -> list[Verdict | None]:
    (server,) = (one for one in servers(seconds) if one.what == what)
    generator = np.random.default_rng(7)
    return [simulate(server, rate, seconds, generator)[0] for _ in range(runs)]


@pytest.mark.parametrize("rate", RATES[::2])
@pytest.mark.parametrize("what", ["p99 at 0.95 of its bound", "errors at 0.95 of their bound"])
def test_who_keeps_a_bound_by_little_is_not_failed(what: str, rate: float) -> None:
    assert verdicts(what, rate=rate, seconds=120, runs=100).count(Verdict.FAIL) <= 1


@pytest.mark.parametrize("rate", RATES[::2])
@pytest.mark.parametrize("what", ["p50 at 1.05 of its bound", "10 % in stalls of 1/120 of the run"])
def test_who_breaks_a_bound_is_not_passed(what: str, rate: float) -> None:
    assert verdicts(what, rate=rate, seconds=120, runs=100).count(Verdict.PASS) <= 1


def test_a_stall_that_a_run_meets_early_fails_no_sound_server() -> None:
    """One stall of half a minute in more than an hour: against the fifty queries round it it weighed too much."""
    found = verdicts("0.7 % in stalls of 1/20 of the run", rate=1.0, seconds=600, runs=100)
    assert found.count(Verdict.FAIL) <= 1
    assert found.count(Verdict.PASS) >= 70


@pytest.mark.parametrize(("rate", "decided"), [(0.1, 0.95), (1.0, 1.0)])
def test_who_is_plainly_too_slow_fails_all_the_same(rate: float, decided: float) -> None:
    found = verdicts("p99 at 1.5 of its bound", rate=rate, seconds=600, runs=60)
    assert found.count(Verdict.FAIL) >= decided * len(found)


def test_most_runs_of_some_low_rates_end_by_the_clock() -> None:
    (server,) = (one for one in servers(600) if one.what == "p99 at 0.7 of its bound")
    found = [simulate(server, 0.1, 600.0, np.random.default_rng(seed)) for seed in range(40)]
    assert 5 < sum(by_clock for _, by_clock, _ in found) < 35


def test_a_query_after_the_closing_counts_neither_quick_nor_slow() -> None:
    """A quick one would be known when the time is up, and a slow one not: the rest would look quicker than it is."""

    def late(seconds: float) -> tuple[Verdict | None, bool, int]:
        server = Served(
            what="late", bound=P99, keeps=True, latency=lambda at, _: np.where(at > 60, seconds, 0.01) + 0 * at
        )
        return simulate(server, 0.1, 60.0, cast("np.random.Generator", Late()))

    assert late(0.01)[1:] == late(9.0)[1:] == (True, 4)


class Late:
    """Arrivals every ten seconds, the last of which comes between the closing and the end of the time."""

    def exponential(self, scale: float, count: int) -> np.ndarray:
        return np.array([10.0] * 4 + [42.0] + [100.0] * (count - 5))
