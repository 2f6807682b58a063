"""Hours of traffic in minutes, as promtool's unit tests read them, and what must be firing when.

Owns the notation. Used by test_rules.
"""

from dataclasses import dataclass, field
from typing import Any

PER_MINUTE = 6000
MODEL = 'model="digits", job="triton", version="1", instance="a:8002"'

Series = dict[str, str]
Moments = dict[int, int]
"""How many alerts fire, by step."""


def counter(*segments: tuple[int, float]) -> str:
    """A counter's value at each step: segments of so many steps with so many events in each."""
    parts, value = [], 0.0
    for minutes, each in segments:
        parts.append(f"{value:.10g}+{each:.10g}x{minutes - 1}")
        value += each * minutes
    return " ".join(parts)


def traffic(*segments: tuple[int, float], bucket: str = "15", failing: float = 0.0) -> dict[str, str]:
    """A model's series: segments of so many minutes of which a share is slow; a share fails at once besides."""
    good = PER_MINUTE * (1 - failing)
    zero = [(minutes, 0.0) for minutes, _ in segments]
    histogram = "nv_inference_first_response_histogram_ms"
    return {
        f"nv_inference_request_success{{{MODEL}}}": counter(*((minutes, good) for minutes, _ in segments)),
        f"{histogram}_count{{{MODEL}}}": counter(*((minutes, good) for minutes, _ in segments)),
        f'{histogram}_bucket{{{MODEL}, le="{bucket}"}}': counter(*((m, good * (1 - slow)) for m, slow in segments)),
        f'nv_inference_request_failure{{{MODEL}, reason="BACKEND"}}': counter(
            *((minutes, PER_MINUTE * failing) for minutes, _ in segments)
        ),
        f'nv_inference_request_failure{{{MODEL}, reason="CANCELED"}}': counter(*zero),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Series by step, and for each selector of alerts how many fire at which step; a step is a minute or more."""

    name: str
    series: Series
    firing: dict[str, Moments] = field(default_factory=dict)
    step: int = 1

    def test(self) -> dict[str, Any]:
        """The scenario as an entry of promtool's `tests`."""
        return {
            "name": self.name,
            "interval": f"{self.step}m",
            "input_series": [{"series": series, "values": values} for series, values in self.series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertstate="firing", {alerts}}}) or vector(0)',
                    "eval_time": f"{moment * self.step}m",
                    "exp_samples": [{"labels": "{}", "value": count}],
                }
                for alerts, moments in self.firing.items()
                for moment, count in moments.items()
            ],
        }
