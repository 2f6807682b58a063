"""Packaging holds little more than the weights, in memory and on disk: the peaks of a network that is little else."""

import os

import pytest

from benchmarks.footprint import measure

GIGABYTES = float(os.environ.get("DEPLOYCTL_FOOTPRINT_GB", "0.5"))
# Bytes of torch, graphs and compilers in all processes of a stage, whatever the weights.
_CODE = 0.9e9
# Times the file: mapped once, and what a compiler, ONNX Runtime or four contenders for latency hold of them beside.
_MEMORY = {"read": 1.0, "export": 1.0, "convert": 2.5, "prove": 2.0, "measure": 4.0}
# ONNX Runtime makes float32 of float16 weights, in each of its sessions; looking for kernels takes a process.
_FLOAT16 = _MEMORY | {"convert": 2.8, "prove": 2.5, "measure": 5.0}
# They are computed with in float32, twice the file.
_BFLOAT16 = {"read": 1.0, "export": 2.6, "convert": 4.7, "prove": 3.5, "measure": 8.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "memory", "disk"),
    [("float32", _MEMORY, 2.0), ("float16", _FLOAT16, 2.0), ("bfloat16", _BFLOAT16, 4.0)],
)
def test_no_stage_holds_many_copies_of_the_weights(dtype: str, memory: dict[str, float], disk: float) -> None:
    rows = measure(GIGABYTES, dtype=dtype, turns=("first",), serve=False)

    assert {row["stage"].split()[0] for row in rows} == set(memory)
    for row in rows:
        assert row["memory"] <= memory[row["stage"].split()[0]] * row["weights"] + _CODE, row
        assert row["disk"] <= disk * row["weights"] + 50e6, row
