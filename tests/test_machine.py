"""scripts/check_machine.py names what a machine lacks, each with a remedy, and says nothing where all is well."""

import ast
import subprocess
import sys
from pathlib import Path

import check_machine
import pytest

from deploy import needs
from tests.markdown import ROOT


@pytest.mark.parametrize("version", [(3, 11), (3, 12)])
def test_supported_pythons_pass(version: tuple[int, int]) -> None:
    assert not needs.check_python(version).remedy


@pytest.mark.parametrize("version", [(3, 8), (3, 10), (3, 13)])
def test_other_pythons_are_named_with_a_way_out(version: tuple[int, int]) -> None:
    finding = needs.check_python(version)
    assert finding.found == f"{version[0]}.{version[1]}"
    assert "PYTHON=python3.11" in finding.remedy


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Linux", "aarch64")])
def test_platforms_without_a_server_are_refused(system: str, machine: str) -> None:
    assert "x86-64" in needs.check_platform(system, machine).remedy


@pytest.mark.parametrize("libc", [("glibc", "2.31"), ("", ""), ("musl", "1.2")])
def test_old_or_other_c_libraries_are_refused(libc: tuple[str, str]) -> None:
    assert "2.35" in needs.check_glibc(libc).remedy


@pytest.mark.parametrize("libc", [("glibc", "2.35"), ("glibc", "2.41")])
def test_new_c_libraries_pass(libc: tuple[str, str]) -> None:
    assert not needs.check_glibc(libc).remedy


def test_a_missing_compiler_is_named() -> None:
    finding = needs.check_compiler("no-such-compiler")
    assert finding.found == "no no-such-compiler on PATH"
    assert "CXX" in finding.remedy


def test_a_compiler_that_cannot_build_is_named_with_its_reason(tmp_path: Path) -> None:
    compiler = tmp_path / "broken++"
    compiler.write_text("#!/bin/sh\necho 'fatal: no libgomp' >&2\nexit 1\n")
    compiler.chmod(0o755)
    finding = needs.check_compiler(str(compiler))
    assert "no libgomp" in finding.found
    assert finding.remedy


def test_a_missing_shared_python_is_named_with_its_package() -> None:
    finding = needs.check_libpython((3, 99))
    assert finding.found == "no libpython3.99.so.1.0"
    assert "apt-get install libpython3.99" in finding.remedy


def test_a_full_disk_says_how_much_is_lacking(tmp_path: Path) -> None:
    finding = needs.check_disk(tmp_path / "not" / "made", 1e9)
    assert str(tmp_path) in finding.found
    assert "GB more" in finding.remedy
    assert not needs.check_disk(tmp_path, 0.0).remedy


def test_a_lack_ends_with_3_and_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert check_machine.main(["--folder", str(tmp_path)]) == 3
    assert "MISSING  C++ compiler: no no-such-compiler on PATH" in capsys.readouterr().out


def test_it_needs_nothing_but_the_standard_library() -> None:
    source = ROOT / "scripts" / "check_machine.py"
    # -I -S hides every installed package; an older Python must be able to parse the file too.
    result = subprocess.run(
        [sys.executable, "-I", "-S", str(source)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert "Python: " in result.stdout, result.stderr
    for file in (source, ROOT / "deploy" / "needs.py", ROOT / "deploy" / "__init__.py"):
        ast.parse(file.read_text(), feature_version=(3, 7))
