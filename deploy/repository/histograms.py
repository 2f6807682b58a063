"""The buckets of a model's latency histogram, `nv_inference_first_response_histogram_ms`.

Owns their bounds. Triton's own (100, 500, 2000, 5000 ms) tell nothing about a model that answers in 10 ms. Called by
config. The server exposes the histogram with `--metrics-config=histogram_latencies=true`.
"""

from typing import Any

LATENCY_HISTOGRAM = "nv_inference_first_response_histogram_ms"

LADDER_MS = (1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0)
# Close beside the bound, since a quantile is read off between two buckets; the bound itself is one of them.
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)


def latency_buckets(bound_ms: float | None) -> tuple[float, ...]:
    """The upper bounds in ms, ascending: round the latency bound where there is one, else from 1 ms to 5 s."""
    if bound_ms is None:
        return LADDER_MS
    return tuple(float(f"{bound_ms * share:.6g}") for share in _SHARES)


def set_latency_buckets(config: Any, *, bound_ms: float | None) -> None:
    """Give a ModelConfig message the buckets."""
    control = config.model_metrics.metric_control.add()
    control.metric_identifier.family = LATENCY_HISTOGRAM
    control.histogram_options.buckets.extend(latency_buckets(bound_ms))
