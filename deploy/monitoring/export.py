"""How a server has to export latency so that objectives can be judged: flags, and buckets in the model's config.

Owns that choice, per target. Called by whatever renders a command line or a config for production.
"""

from deploy.monitoring.objective import Objective
from deploy.monitoring.slo_queries import HISTOGRAM, Measure, summary_quantiles
from deploy.repository.protobuf import format_config, parse_config
from deploy.serve.flags import LatencyMetrics

# Parts and multiples of the bound: enough to see by how much it is kept or missed.
_AROUND = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 10.0)


def measure_for(*, histograms: bool | None) -> Measure:
    """What objectives are judged by; a target of which it is not known whether it has histograms is taken to have none.

    `histograms` is the target's `latency_histograms`.
    """
    return "histograms" if histograms else "summaries"


def latency_export(objectives: tuple[Objective, ...], *, measure: Measure) -> tuple[LatencyMetrics, tuple[float, ...]]:
    """`latency` and `quantiles` of a `Production`: summaries cost throughput, so only where an objective needs them."""
    if measure == "histograms":
        return "histograms", ()
    quantiles = summary_quantiles(objectives)
    return ("summaries", quantiles) if quantiles else ("counters", ())


def latency_buckets(objectives: tuple[Objective, ...]) -> tuple[float, ...]:
    """Where the buckets of a model's histogram end, in ms ascending: at each bound, and round it."""
    bounds = [objective.bound_ms for objective in objectives if objective.bound_ms is not None]
    return tuple(sorted({float(f"{bound * part:.12g}") for bound in bounds for part in _AROUND}))


def with_buckets(config: str, objectives: tuple[Objective, ...]) -> str:
    """A model's config with `model_metrics` for its objectives; as it was where none has a bound.

    By default Triton's buckets end at 100, 500, 2000 and 5000 ms, which says nothing about a bound of 15.
    """
    buckets = latency_buckets(objectives)
    if not buckets:
        return config
    message = parse_config(config)
    controls = message.model_metrics.metric_control
    kept = [control for control in controls if control.metric_identifier.family != HISTOGRAM]
    del controls[:]
    controls.extend(kept)
    control = controls.add()
    control.metric_identifier.family = HISTOGRAM
    control.histogram_options.buckets.extend(buckets)
    return format_config(message)
