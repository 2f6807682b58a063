"""A deploy.toml is read into records, and what nobody can mean is refused with the nearest thing that is right."""

from pathlib import Path

import pytest
from pydantic import Field

from deploy.errors import UsageError
from deploy.records import Record
from deploy.settings import LocalPath, Place, read_table

TABLES = ("package", "slo")


class Stage(Record):
    """A table inside a table."""

    folder: LocalPath | None = None


class Package(Record):
    """A table as a room would own it."""

    rate: float | None = Field(default=None, gt=0)
    thorough: bool = False
    max_batch: int = 8
    input_shape: tuple[int, ...] | None = None
    samples: LocalPath | None = None
    destination: Place | None = None
    stages: dict[str, Stage] = Field(default_factory=dict)


def read(folder: Path, text: str) -> Package:
    (folder / "deploy.toml").write_text(text)
    return read_table(folder / "deploy.toml", "package", Package, tables=TABLES)


def test_a_table_becomes_a_record_of_its_own_types(tmp_path: Path) -> None:
    found = read(tmp_path, "[package]\nrate = 200\nthorough = true\ninput_shape = [3, 64, 64]\n[slo]\nanything = 1\n")
    assert (found.rate, found.thorough, found.input_shape, found.max_batch) == (200.0, True, (3, 64, 64), 8)


def test_relative_paths_begin_at_the_files_folder_and_urls_stay(tmp_path: Path) -> None:
    found = read(tmp_path, '[package]\nsamples = "data/samples.npz"\ndestination = "store"\nstages.a.folder = "x"\n')
    assert found.samples == tmp_path / "data" / "samples.npz"
    assert found.destination == str(tmp_path / "store")
    assert found.stages["a"].folder == tmp_path / "x"
    found = read(tmp_path, '[package]\nsamples = "/data/samples.npz"\ndestination = "s3://bucket/models"\n')
    assert (found.samples, found.destination) == (Path("/data/samples.npz"), "s3://bucket/models")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[package]\nmax_bach = 4\n", "[package] max_bach: there is no such key; did you mean max_batch?"),
        ("[package]\nmax-batch = 4\n", "did you mean max_batch?"),
        ("[package]\nzzz = 4\n", "[package] zzz: there is no such key\n"),
        ("[package]\nstages.a.foldr = 'x'\n", "[package] stages.a.foldr: there is no such key; did you mean folder?"),
        ('[package]\nrate = "200"\n', '[package] rate is "200": Input should be a valid number'),
        ("[package]\nrate = -1\n", "[package] rate is -1: Input should be greater than 0"),
        ("[package]\nthorough = 1\n", "[package] thorough is 1: Input should be a valid boolean"),
        ("[package]\nmax_batch = true\n", "[package] max_batch is true: Input should be a valid integer"),
        ("[package]\nrate = 2026-01-01\n", '[package] rate is "2026-01-01"'),
        ("[pakage]\n", "the table [pakage] is not known; did you mean [package]?"),
        ("[package]\n[zzz]\n", "the table [zzz] is not known\n"),
        ("rate = 3\n[package]\n", "the key rate, outside every table, is not known"),
        ("package = 3\n", "package is a single value"),
        ("[slo]\n", "has no table [package]; it holds [slo]"),
        ("", "has no table [package]; it holds nothing"),
        ("[package\n", "is not TOML"),
        ("[package]\nrate = 1\nrate = 2\n", "is not TOML"),
    ],
)
def test_what_nobody_can_mean_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        read(tmp_path, text)
    assert said in str(error.value)
    assert str(tmp_path / "deploy.toml") in str(error.value)


def test_every_wrong_key_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        read(tmp_path, "[package]\nmax_bach = 4\nrate = -1\n")
    assert "max_bach" in str(error.value)
    assert "rate" in error.value.found


def test_an_absent_or_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        read_table(tmp_path / "absent.toml", "package", Package, tables=TABLES)
    with pytest.raises(UsageError, match="is not TOML"):
        read_table(tmp_path, "package", Package, tables=TABLES)
    (tmp_path / "latin.toml").write_bytes("[package]\n# \xe9\n".encode("latin-1"))
    with pytest.raises(UsageError, match="is not TOML"):
        read_table(tmp_path / "latin.toml", "package", Package, tables=TABLES)
