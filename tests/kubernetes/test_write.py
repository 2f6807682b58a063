"""A rendering is written whole, replaces an earlier one, and never what somebody else put there."""

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.errors import UsageError
from deploy.kubernetes.render import Rendered
from deploy.kubernetes.write import RECORD_FILE, write
from tests.kubernetes.example import example


@pytest.fixture(scope="module")
def rendered() -> Rendered:
    return example("gpu")


def state(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_version_gives_the_same_bytes(rendered: Rendered, tmp_path: Path) -> None:
    write(rendered, tmp_path / "a")
    write(example("gpu"), tmp_path / "b")
    assert state(tmp_path / "a") == state(tmp_path / "b")
    assert set(state(tmp_path / "a")) == {*rendered.files, RECORD_FILE}


def test_an_earlier_rendering_is_replaced_and_leaves_nothing(rendered: Rendered, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "k8s"
    write(replace(rendered, files={**rendered.files, "old/thing.yaml": "a: 1\n"}), output)
    paths = write(rendered, output)
    assert not (output / "old").exists()
    assert all(path.is_file() for path in paths)
    assert [path.name for path in output.parent.iterdir()] == ["k8s"]


def test_an_empty_folder_is_taken(rendered: Rendered, tmp_path: Path) -> None:
    (tmp_path / "k8s").mkdir()
    assert write(rendered, tmp_path / "k8s")


@pytest.mark.parametrize(
    ("name", "words"),
    [("base/deployment.yaml", "was changed since"), ("overlays/mine/kustomization.yaml", "was changed since")],
)
def test_changes_by_others_are_kept(name: str, words: str, rendered: Rendered, tmp_path: Path) -> None:
    output = tmp_path / "k8s"
    write(rendered, output)
    (output / name).parent.mkdir(exist_ok=True)
    (output / name).write_text("mine: true\n")
    before = state(output)
    with pytest.raises(UsageError, match=words) as caught:
        write(rendered, output)
    assert name in str(caught.value)
    assert state(output) == before
    assert [path.name for path in tmp_path.iterdir()] == ["k8s"]


def test_a_folder_of_something_else_is_refused(rendered: Rendered, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"did not render: notes\.txt"):
        write(rendered, tmp_path)
    with pytest.raises(UsageError, match="is no folder"):
        write(rendered, tmp_path / "notes.txt")
    with pytest.raises(UsageError, match=r"notes\.txt cannot be made a folder"):
        write(rendered, tmp_path / "notes.txt" / "k8s")


def test_a_link_is_not_followed(rendered: Rendered, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(UsageError, match="is no folder"):
        write(rendered, tmp_path / "link")


def test_a_file_that_cannot_be_written_leaves_what_was_there(rendered: Rendered, tmp_path: Path) -> None:
    """A file where a folder must go ends the writing in the middle."""
    output = tmp_path / "k8s"
    write(rendered, output)
    before = state(output)
    with pytest.raises(OSError, match="base"):
        write(replace(rendered, files={"base": "a file", **rendered.files}), output)
    assert state(output) == before
    assert [path.name for path in tmp_path.iterdir()] == ["k8s"]
