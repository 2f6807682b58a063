"""The doctor says what is there, names each lack with its remedy, and ends with 3 where the main job cannot run."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from deploy import doctor
from deploy.errors import ExitCode
from deploy.serve.engines import Engine
from tests.markdown import ROOT

ALL = dict.fromkeys(doctor._PACKAGES, "1.0") | {"torchvision ops": "load", "providers": "CPUExecutionProvider"}


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy", "doctor", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )


@pytest.mark.engine
def test_a_machine_that_can_package_gets_0_and_says_what_it_can_do(engine: Engine) -> None:
    done = run("--json")
    assert done.returncode == ExitCode.OK, done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    states = {finding["what"]: finding for finding in found["findings"]}
    assert {"Python", "torch", "torchvision", "onnxruntime", "C++ compiler", "tritonserver", "GPU"} <= set(states)
    assert "CPUExecutionProvider" in states["onnxruntime"]["found"]
    assert engine.server_version in states["tritonserver"]["found"]
    assert found["can"]["build ONNX"] == "for every target"
    assert found["can"]["build AOTInductor"].startswith("for local-cpu")
    assert [finding for finding in found["findings"] if finding["state"] != "ok" and not finding["remedy"]] == []


def test_what_the_main_job_lacks_is_named_with_its_remedy_and_ends_with_3(tmp_path: Path) -> None:
    done = run(CXX="no-such-compiler", DEPLOYCTL_CACHE=str(tmp_path))
    assert done.returncode == ExitCode.MISSING
    assert "MISSING  C++ compiler: the C++ compiler 'no-such-compiler' is not on PATH" in done.stdout
    assert "to do: install g++" in done.stdout
    assert "MISSING  tritonserver: no tritonserver was found" in done.stdout
    assert "deployctl engine install" in done.stdout
    assert "build AOTInductor: no" in done.stdout


def states(packages: dict[str, str]) -> dict[str, str]:
    return {finding.what: finding.state for finding in doctor.package_findings(packages)}


def test_each_package_that_cannot_be_imported_is_missing() -> None:
    assert set(states(ALL).values()) == {"ok"}
    for name in doctor._PACKAGES:
        broken = states({**ALL, name: "error: ImportError: no module"})
        assert {one: state for one, state in broken.items() if state != "ok"} == {name: "missing"}


@pytest.mark.parametrize(
    "error", ["ValueError('numpy.dtype size changed')", "TypeError('Descriptors cannot be created')"]
)
def test_a_package_that_ends_its_import_with_any_error_is_missing_alone(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Binaries for another numpy or protobuf say so with errors of these kinds."""
    (tmp_path / "broken_package.py").write_text(f"raise {error}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert doctor._import("broken_package").startswith(f"error: {error.partition('(')[0]}: ")


def test_without_torch_torchvision_is_not_tried_and_missing() -> None:
    found = {name: version for name, version in ALL.items() if name != "torchvision"}
    assert states({**found, "torch": "error: OSError: libgomp"})["torchvision"] == "missing"


def test_torchvision_for_another_torch_is_said_and_is_no_lack() -> None:
    found = {finding.what: finding for finding in doctor.package_findings({**ALL, "torchvision ops": ""})}
    assert found["torchvision"].state == "ok"
    assert "without its C++ ops" in found["torchvision"].found


def test_the_probe_tells_an_error_from_a_version() -> None:
    assert doctor._import("no_such_package_at_all").startswith("error: ModuleNotFoundError")


@pytest.mark.parametrize(
    ("flags", "state", "words"),
    [("fpu avx2 avx512f", "ok", "AVX2, AVX-512"), ("fpu avx", "absent", "none of AVX2"), (None, "absent", "none of")],
)
def test_a_processor_without_avx2_is_for_onnx(flags: str | None, state: str, words: str) -> None:
    found = doctor.cpu_finding(f"processor : 0\nflags\t\t: {flags}\n" if flags else "")
    assert (found.state, bool(found.remedy)) == (state, state != "ok")
    assert words in found.found


def test_little_memory_and_a_full_disk_are_lacks(tmp_path: Path) -> None:
    assert doctor.memory_finding(1.0).state == "missing"
    assert doctor.memory_finding(64.0).state == "ok"
    assert doctor.disk_finding("disk", tmp_path / "not" / "made", 1e9).state == "missing"
    assert doctor.disk_finding("disk", tmp_path, 0.0).state == "ok"


def test_a_folder_where_nothing_may_run_is_a_lack(tmp_path: Path) -> None:
    flags = os.statvfs(tmp_path).f_flag & ~os.ST_NOEXEC
    assert doctor.temporary_finding(tmp_path, flags).state == "ok"
    found = doctor.temporary_finding(tmp_path, flags | os.ST_NOEXEC)
    assert found.state == "missing"
    assert "TMPDIR" in found.remedy


def test_gpus_are_listed_with_what_torch_makes_of_them() -> None:
    listing = "NVIDIA H100 80GB HBM3, 615.61, 9.0, 81559 MiB\n"
    seen, unseen, none = (
        doctor.gpu_finding(listing, "13.0"),
        doctor.gpu_finding(listing, ""),
        doctor.gpu_finding("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", ""),
    )
    assert (seen.state, unseen.state, none.state) == ("ok", "absent", "absent")
    assert "NVIDIA H100 80GB HBM3, driver 615.61, sm 90, 81559 MiB" in seen.found
    assert "this torch cannot use it" in unseen.found


def test_the_extras_are_those_of_the_project_each_with_its_pip_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {
        extra: tuple(line.split(">")[0] for line in lines)
        for extra, lines in project.items()
        if extra not in ("dev", "release")
    }
    assert named == doctor.EXTRAS
    found = {finding.what: finding for finding in doctor.extra_findings(lambda name: name != "s3fs")}
    assert (found["extra s3"].state, found["extra s3"].remedy) == ("absent", 'pip install "deployctl[s3]"')
    assert found["extra gcs"].state == "ok"
