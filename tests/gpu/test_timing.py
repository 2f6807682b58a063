"""The clock waits for the GPU: a call that only launches its work is timed by when the work is done."""

import os
from pathlib import Path

import pytest

from deploy.processes import Worker
from tests.gpu.models import Products

pytestmark = pytest.mark.gpu

SIZE = 8192  # one float64 product takes the largest GPUs tens of milliseconds, and a launch takes microseconds
CALLS = 7


def test_a_call_is_timed_until_the_device_is_done() -> None:
    with Worker("products", log=Path(os.devnull)) as worker:
        worker.make(Products, SIZE)
        computing = worker.call("computing_seconds", CALLS)
        timed = sorted(worker.call("time_calls", (), CALLS))[CALLS // 2]
    print(f"the device computes for {computing * 1000:.2f} ms, the call is timed as {timed * 1000:.2f} ms")
    assert timed > 0.8 * computing
