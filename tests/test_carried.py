"""The next fine-tune takes the latency of before where it may, and measures where it is asked to."""

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.cache import artifact_store
from deploy.checkpoint.model import CheckpointRequest
from deploy.errors import ExitCode
from deploy.request import PackageRequest
from tests.fixtures import save_state_dict, seeded_module
from tests.packaging import make_request, run


def library_request(folder: Path, *, seed: int) -> PackageRequest:
    """A fine-tune of a library's architecture, ONNX only, without real samples and a server."""
    request = make_request(folder)
    path = save_state_dict(seeded_module("squeezenet1_1", size=64, seed=seed), folder / "squeezenet.pt")
    checkpoint = CheckpointRequest(path=path, arch="squeezenet1_1", input_shapes=((3, 64, 64),))
    return replace(request, checkpoint=checkpoint, samples=None, labels=None, serve_check=False)


@pytest.mark.slow
def test_the_next_fine_tune_takes_the_latency_that_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a machine was quiet is not the test's: what was kept is taken, and what was not is measured."""
    monkeypatch.setenv("DEPLOYCTL_CACHE", str(tmp_path / "cache"))
    first = run(library_request(tmp_path / "first", seed=0))
    kept = [entry for entry in artifact_store().entries() if entry.about.startswith("latency")]

    request = library_request(tmp_path / "second", seed=1)
    second = run(request)
    resources = request.resources
    again = run(replace(request, repository=tmp_path / "again"), resources=replace(resources, measure_again=True))
    bound = run(replace(request, repository=tmp_path / "bound"), slo_p99_ms=10_000.0)
    alone = run(replace(request, repository=tmp_path / "alone"), resources=replace(resources, cache=False))

    assert first.latency and second.latency and again.latency and bound.latency and alone.latency
    assert (second.latency.carried is not None) == bool(kept)
    if second.latency.carried is not None:
        assert second.latency.carried.checkpoint == first.checkpoint.digest != second.checkpoint.digest
        assert second.latency.cells == first.latency.cells
    assert (first.latency.carried, again.latency.carried, bound.latency.carried, alone.latency.carried) == (None,) * 4
    assert second.exit_code is ExitCode.OK
