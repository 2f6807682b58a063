"""Threads and names are read from the kernel's own files, quota and hyper-threads included."""

import os
from pathlib import Path

import pytest

from deploy.validate.machine import cpu_model, default_threads, installed_versions


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight CPUs on four cores, all of them allowed, no quota."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    for cpu in range(8):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("max 100000\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: Wide Core 9000\nflags\t: a b\n")
    return tmp_path


def test_one_thread_per_core_not_per_hyper_thread(machine: Path) -> None:
    assert default_threads(machine) == 4


def test_a_container_quota_bounds_the_threads(machine: Path) -> None:
    (machine / "sys/fs/cgroup/cpu.max").write_text("250000 100000\n")
    assert default_threads(machine) == 2


def test_half_a_cpu_still_gives_one_thread(machine: Path) -> None:
    (machine / "sys/fs/cgroup/cpu.max").write_text("50000 100000\n")
    assert default_threads(machine) == 1


def test_the_processor_is_named_where_the_kernel_names_it(machine: Path, tmp_path: Path) -> None:
    assert cpu_model(machine) == "Wide Core 9000"
    assert cpu_model(tmp_path / "nowhere") == os.uname().machine


def test_versions_of_what_is_absent_are_left_out() -> None:
    assert list(installed_versions(("numpy", "no-such-distribution"))) == ["numpy"]
