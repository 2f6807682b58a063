"""Packaging holds little more than the weights, in memory and on disk: the peaks of a network that is little else."""

import os

import pytest

from benchmarks.footprint import measure

GIGABYTES = float(os.environ.get("DEPLOYCTL_FOOTPRINT_GB", "0.5"))
# Bytes of torch, graphs and compilers in all processes of a stage, whatever the weights.
_CODE = 0.9e9
# Times the weights: mapped once, and what a compiler, ONNX Runtime or four contenders for latency hold of them beside.
_MEMORY = {"read": 1.0, "export": 1.0, "convert": 2.5, "prove": 2.0, "measure": 4.0}
# The two artifacts.
_DISK = 2.0


@pytest.mark.slow
def test_no_stage_holds_many_copies_of_the_weights() -> None:
    rows = measure(GIGABYTES, turns=("first",), serve=False)

    assert {row["stage"].split()[0] for row in rows} == set(_MEMORY)
    for row in rows:
        most = _MEMORY[row["stage"].split()[0]]
        assert row["memory"] <= most * row["weights"] + _CODE, row
        assert row["disk"] <= _DISK * row["weights"] + 50e6, row
