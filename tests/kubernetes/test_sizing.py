"""Sizes follow what was measured, say where they are from, and are careful where nothing was."""

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.evidence import ServedEvidence
from deploy.kubernetes.sizing import GIBI, MEBI, Sizes, quantity, sizes
from deploy.targets import Target, find_target
from tests.kubernetes.example import example
from tests.kubernetes.make_fixture import SERVED

CPU, GPU = find_target("26.08-cpu"), find_target("26.08-cuda-sm90")
MODEL = example("cpu").plan.model


def sized(served: ServedEvidence | None = SERVED, target: Target = CPU, *, pulled: bool = False) -> Sizes:
    return sizes(MODEL, target, served=served, latency=None, pulled=pulled)


@pytest.mark.parametrize(("ready", "start"), [(0.5, 60), (6.0, 60), (6.1, 61), (40.0, 400)])
def test_a_start_may_take_ten_times_what_it_took(ready: float, start: int) -> None:
    assert sized(SERVED.model_copy(update={"ready_seconds": ready})).start_seconds == start


def test_memory_is_half_more_than_the_most_that_it_took() -> None:
    found = sized(SERVED.model_copy(update={"peak_memory": 4 * GIBI}))
    assert found.memory == 6 * GIBI + found.shared_memory
    assert "4096Mi at most" in found.basis[1]


def test_small_models_get_what_the_server_itself_needs() -> None:
    assert sized(SERVED.model_copy(update={"peak_memory": 10 * MEBI})).memory == GIBI + 64 * MEBI


def test_a_gpu_takes_memory_of_its_own() -> None:
    assert sized(target=GPU).memory - sized().memory == 3 * GIBI


def test_what_was_never_measured_is_said_to_be_so() -> None:
    found = sized(None)
    assert found.start_seconds == 600
    assert all("never measured" in sentence for sentence in found.basis[:2])
    # Evidence from before memory was recorded.
    assert "never measured" in sized(SERVED.model_copy(update={"peak_memory": 0})).basis[1]


def test_an_archive_is_unpacked_to_tmp_and_a_graph_is_not() -> None:
    files = tuple(replace(file, size=200 * MEBI) for file in MODEL.files[:1])
    manifest = MODEL.manifest.model_copy(update={"format": "aoti"})
    archive = replace(MODEL, files=files, manifest=manifest)
    assert sizes(archive, CPU, served=SERVED, latency=None).tmp >= 400 * MEBI
    assert sizes(replace(MODEL, files=files), CPU, served=SERVED, latency=None).tmp == 64 * MEBI
    assert sizes(replace(MODEL, files=files), CPU, served=SERVED, latency=None, pulled=True).tmp >= 264 * MEBI


@pytest.mark.parametrize(("count", "text"), [(GIBI, "1Gi"), (3 * GIBI // 2, "1536Mi"), (1, "1Mi")])
def test_quantities_as_kubernetes_writes_them(count: int, text: str) -> None:
    assert quantity(count) == text


def test_evidence_from_before_memory_was_recorded_still_reads(tmp_path: Path) -> None:
    old = SERVED.model_dump(mode="json")
    del old["peak_memory"]
    path = tmp_path / "served.json"
    path.write_text(ServedEvidence.model_validate(old).to_json().replace('"peak_memory": 0', '"ready_seconds": 1.0', 1))
    assert ServedEvidence.model_validate(old).peak_memory == 0
