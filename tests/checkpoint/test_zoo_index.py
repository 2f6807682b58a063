"""The shipped index and its page are those that the installed torchvision gives, and another release gets its own."""

from pathlib import Path

import pytest

from deploy.checkpoint import zoo
from deploy.checkpoint.architecture import decode, encode
from deploy.checkpoint.vision import minor_release, torchvision_version
from deploy.checkpoint.zoo_index import build_zoo
from deploy.checkpoint.zoo_page import architectures_page

ROOT = Path(__file__).parents[2]
shipped = pytest.mark.skipif(minor_release() != "0.28", reason="the index is shipped for torchvision 0.28")


@shipped
@pytest.mark.slow
def test_the_shipped_index_is_current() -> None:
    index = ROOT / "deploy" / "data" / f"zoo-{minor_release()}.json.gz"
    assert decode(index.read_bytes()) == build_zoo()


@shipped
def test_the_page_is_current() -> None:
    page = (ROOT / "docs" / "architectures.md").read_text()
    assert page == architectures_page(zoo.load_zoo())
    assert "109 of the\n129 architectures" in page
    assert page.count("| no: `--arch` chooses") == 8
    assert page.count("| no: taken for") == 12


def test_another_release_reads_the_index_that_was_built_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = zoo.load_zoo()["resnet18"]
    monkeypatch.setenv("DEPLOYCTL_CACHE", str(tmp_path))
    monkeypatch.setattr(zoo, "minor_release", lambda: "0.99")
    built = tmp_path / "zoo" / f"zoo-{torchvision_version()}-2.json.gz"
    built.parent.mkdir()
    built.write_bytes(encode({"resnet18": entry}))
    assert zoo.load_zoo.__wrapped__() == {"resnet18": entry}


@pytest.mark.slow
def test_another_release_builds_its_index_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYCTL_CACHE", str(tmp_path))
    monkeypatch.setattr(zoo, "minor_release", lambda: "0.99")
    assert zoo.load_zoo.__wrapped__() == build_zoo()
    assert len(list((tmp_path / "zoo").iterdir())) == 1
