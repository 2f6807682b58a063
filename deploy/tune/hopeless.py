"""When it is plain that no setting can keep a bound, and how near to it the quickest one came.

Owns the rule that ends such a search early, and the words for what was seen. Called by trials and run.

A request that waits for nobody and is merged with nobody takes as long as one instance computes. Of the knobs only the
threads change that: batches, delays and instances do something for requests that meet each other. So where a setting
without merging, for each number of threads, was over the bound with at least half of its queries at every rate, the
lowest ones included, no other setting can have 99 % of them within it.
"""

from collections.abc import Sequence

from deploy.slo.tune_records import Knob, Probe, Setting, TuneTrial
from deploy.tune.value import HOPELESS

# Fewer queries say too little: that two of three are over a bound which a hundredth may break is one chance in 3,000.
_FEWEST = 3
# From so many queries on their p99 is worth naming beside that of others.
_ENOUGH = 30


def is_hopeless(trial: TuneTrial) -> bool:
    """Whether at least half of the queries were over the bound at every rate, of enough queries together."""
    if trial.status == "failed" or trial.rate is not None or any(probe.kept is None for probe in trial.probes):
        return False
    enough = sum(probe.queries for probe in trial.probes) >= _FEWEST
    return enough and all(probe.over >= HOPELESS * probe.queries for probe in trial.probes)


def all_hopeless(trials: Sequence[TuneTrial]) -> bool:
    """Whether every setting that was loaded was hopeless, and one was."""
    loaded = [trial for trial in trials if trial.status != "failed"]
    return bool(loaded) and all(map(is_hopeless, loaded))


def undecided_threads(trials: Sequence[TuneTrial], knobs: Sequence[Knob]) -> tuple[int | None, ...]:
    """The numbers of threads for which a setting without merging might still keep the bound; empty for none.

    None is the number where threads are no knob.
    """
    values: tuple[int | None, ...] = next((knob.values for knob in knobs if knob.name == "threads"), (None,))
    seen = {trial.setting.threads for trial in trials if trial.setting.batch_limit in (None, 1) and is_hopeless(trial)}
    return tuple(value for value in values if value not in seen) if all_hopeless(trials) else values


def deciding_setting(trials: Sequence[TuneTrial], knobs: Sequence[Knob]) -> Setting | None:
    """The untried setting that brings the end nearest; None where some setting is not hopeless, or none is left."""
    if not all_hopeless(trials):
        return None
    tried = {trial.setting for trial in trials}
    least = {knob.name: knob.values[0] for knob in knobs if knob.name in ("instances", "batch_limit")}
    for threads in undecided_threads(trials, knobs):
        setting = Setting.model_validate(least if threads is None else {**least, "threads": threads})
        if setting not in tried:
            return setting
    return None


def why_none_can(trials: Sequence[TuneTrial], knobs: Sequence[Knob]) -> str:
    """Why no setting can keep the bound; empty while one might."""
    if undecided_threads(trials, knobs):
        return ""
    return (
        "no setting can keep the bound: without batching, at rates at which hardly a request meets another, at least "
        "half of the queries took longer with every number of threads"
    )


def quickest(trials: Sequence[TuneTrial]) -> tuple[TuneTrial, Probe] | None:
    """The trial and its probe with the lowest p99, of those with enough queries to name one; None where none told."""
    told = [(trial, probe) for trial in trials for probe in trial.probes if probe.kept is not None and probe.queries]
    enough = [one for one in told if one[1].queries >= _ENOUGH] or told
    return min((one for one in enough if one[1].p99 is not None), key=lambda one: one[1].p99 or 0.0, default=None)


def nearest_words(trials: Sequence[TuneTrial], *, patience_ms: float) -> str:
    """The lowest p99 that was seen, with its setting, so that whoever asks knows which bound can be asked for."""
    found = quickest(trials)
    if found is None:
        return ""
    trial, probe = found
    where = f"at {probe.rate:.4g}/s with {trial.setting}, of {probe.queries} queries"
    if probe.p99 is None or probe.p99 >= patience_ms:
        return (
            f"no p99 was within the {patience_ms / 1000:g} s that a client waits for this bound: the lowest was {where}"
        )
    return f"the lowest p99 seen was {probe.p99:.3g} ms, {where}: a bound that can be kept lies above it"
