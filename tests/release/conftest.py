"""Keys and a signed model that the tests of this room copy, since neither changes between them."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.release.keys import SigningKey
from deploy.release.sign import sign
from deploy.repository.find import find_version
from deploy.repository.layout import Version
from deploy.repository.publish import publish
from deploy.repository.stage import open_stage
from tests.release.pki import write_key
from tests.repository.samples import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedModel:
    """A repository whose model `pets` has two versions, the first promoted, both signed by `key`."""

    repository: Path
    key: Path
    public: Path

    @property
    def model(self) -> Path:
        return self.repository / "pets"

    def version(self, number: int = 1) -> Version:
        return find_version(self.repository, f"pets:{number}")

    def signature(self, number: int = 1) -> Path:
        """The folder with the signature of a version."""
        digest = "*"
        folders = self.model.glob(f"attestations/{digest}/signature-*/")
        names = [folder for folder in folders if f'"pets:{number}"' in record_text(folder)]
        assert len(names) == 1
        return names[0]


def record_text(folder: Path) -> str:
    """The record that names a signature's folder."""
    return next(text for path in folder.parent.glob("signature-*.json") if folder.name in (text := path.read_text()))


def put_full(repository: Path, sample: Sample) -> Version:
    """A version with samples among its evidence, as real ones have."""
    with open_stage(repository, sample.name) as stage:
        sample.populate(stage)
        stage.add_evidence("samples.npz", sample.weights * 100)
        return publish(stage, sample.manifest()).version


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the key pairs `release` and `other`."""
    folder = tmp_path_factory.mktemp("keys")
    write_key(folder, "release")
    write_key(folder, "other")
    return folder


@pytest.fixture(scope="session")
def template(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("signed") / "models"
    for weights in (b"the first weights", b"the second ones"):
        version = put_full(repository, Sample(weights=weights))
        sign(repository, str(version), SigningKey(key=keys / "release.key"))
    return repository


@pytest.fixture
def signed(template: Path, keys: Path, tmp_path: Path) -> SignedModel:
    """A copy that a test may spoil."""
    repository = Path(shutil.copytree(template, tmp_path / "models"))
    return SignedModel(repository=repository, key=keys / "release.key", public=keys / "release.pub")
