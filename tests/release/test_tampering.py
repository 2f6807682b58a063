"""Whatever is not exactly what was signed fails, each way for itself, and the reason names what it is."""

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.evidence import Judgement
from deploy.files import sha256_bytes
from deploy.release.keys import SigningKey, load_private_key
from deploy.release.provenance import opened_envelope, sealed_envelope
from deploy.release.sign import sign
from deploy.release.signatures import Trust, check_signature
from deploy.repository.layout import Version
from deploy.repository.manifest import Manifest, file_entries, version_digest
from tests.release.conftest import SignedModel
from tests.repository.samples import Sample, put

FILES = ("config.pbtxt", "evidence/parity.json", "evidence/samples.npz", "labels.txt", "manifest.json", "model.onnx")


def judged(model: SignedModel, number: int = 1) -> Judgement:
    version = Version(repository=model.repository, name="pets", number=number)
    return check_signature(version, Trust(public_key=model.public))


def flip(path: Path, position: int = 0, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= bit
    path.write_bytes(data)


def test_what_was_signed_passes(signed: SignedModel) -> None:
    for number in (1, 2):
        found = judged(signed, number)
        assert found.passed, found.reason
        assert found.reason.startswith("signed by key sha256:")
        assert found.reason.endswith("all 6 files")


def test_the_list_of_files_here_is_the_list_of_files_there(signed: SignedModel) -> None:
    folder = signed.version().folder
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == list(FILES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_one_bit_of_any_file(signed: SignedModel, name: str, place: float) -> None:
    path = signed.version().folder / name
    flip(path, int(place * (path.stat().st_size - 1)))
    found = judged(signed)
    assert not found.passed
    # A changed manifest is unreadable, or disagrees with the files, or makes it a version that nobody signed.
    assert name == "manifest.json" or f"{name} has changed" in found.reason


@pytest.mark.parametrize("name", FILES)
def test_any_file_removed(signed: SignedModel, name: str) -> None:
    (signed.version().folder / name).unlink()
    found = judged(signed)
    assert not found.passed
    assert f"{name} is missing" in found.reason


@pytest.mark.parametrize(
    "name",
    [
        "libtriton_onnxruntime.so", "model.py", "empty", ".hidden", ".git/hooks/post-checkout", ".gitattributes",
        "evidence/more.json", "model.sig",
    ],
)  # fmt: skip
def test_any_file_added(signed: SignedModel, name: str) -> None:
    """Among them those that the library leaves out by default, and the name its own command line ignores."""
    path = signed.version().folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    found = judged(signed)
    assert not found.passed
    assert f"{name} is not in the manifest" in found.reason


@pytest.mark.parametrize("name", ["model.onnx", "config.pbtxt", "evidence/samples.npz"])
def test_a_file_swapped_with_another_versions(signed: SignedModel, name: str) -> None:
    one, two = (signed.version(number).folder / name for number in (1, 2))
    kept = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(kept)
    for number in (1, 2):
        found = judged(signed, number)
        assert not found.passed
        assert f"{name} has changed" in found.reason


def test_whole_versions_swapped(signed: SignedModel) -> None:
    (signed.model / "1").rename(signed.model / "9")
    (signed.model / "2").rename(signed.model / "1")
    (signed.model / "9").rename(signed.model / "2")
    for number in (1, 2):
        assert "belongs to pets:" in judged(signed, number).reason


def test_a_version_copied_under_another_number_or_name(signed: SignedModel) -> None:
    shutil.copytree(signed.model / "1", signed.model / "3")
    assert "belongs to pets:1" in judged(signed, 3).reason
    shutil.copytree(signed.model, signed.repository / "cats")
    cats = Version(repository=signed.repository, name="cats", number=1)
    assert "belongs to pets:1" in check_signature(cats, Trust(public_key=signed.public)).reason


def test_a_signature_of_another_version(signed: SignedModel) -> None:
    shutil.rmtree(signed.signature(2))
    digest = version_digest(signed.model / "2")
    shutil.copytree(signed.signature(1), signed.model / "attestations" / digest / "signature-0")
    found = judged(signed, 2)
    assert not found.passed
    assert "what was signed is not this version" in found.reason


def test_a_manifest_rewritten_to_fit_changed_files(signed: SignedModel) -> None:
    """Whoever can write the files can make a manifest for them, move the signature to its digest, and not sign it."""
    folder = signed.version().folder
    (folder / "model.onnx").write_bytes(b"other weights")
    manifest = Manifest.read(folder / "manifest.json")
    before = version_digest(folder)
    manifest.model_copy(update={"files": file_entries(folder)}).write(folder / "manifest.json")
    assert "not signed as it lies there" in judged(signed).reason
    attestations = signed.model / "attestations"
    (attestations / before).rename(attestations / version_digest(folder))
    found = judged(signed)
    assert not found.passed
    assert "what was signed is not this version: manifest.json, model.onnx" in found.reason


def test_a_link_to_equal_bytes(signed: SignedModel, tmp_path: Path) -> None:
    model = signed.version().folder / "model.onnx"
    model.rename(tmp_path / "elsewhere")
    model.symlink_to(tmp_path / "elsewhere")
    assert "model.onnx is a link" in judged(signed).reason


@pytest.mark.parametrize("name", ["evidence", "."])
def test_a_folder_that_is_a_link(signed: SignedModel, tmp_path: Path, name: str) -> None:
    folder = signed.version().folder / name
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    found = judged(signed)
    assert not found.passed
    assert "is a link" in found.reason


@pytest.mark.parametrize("path", ["../2/model.onnx", "/etc/passwd", "evidence/../../2/model.onnx"])
def test_a_path_in_the_manifest_that_leaves_the_version(signed: SignedModel, path: str) -> None:
    manifest = signed.version().folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"path": "model.onnx"', f'"path": "{path}"'))
    assert "does not stay in the version" in judged(signed).reason


def resign(model: SignedModel, change: Callable[[dict[str, object]], None]) -> None:
    """A list of files signed by the right key, changed before it was signed."""
    path = model.signature() / "model.sig"
    bundle = json.loads(path.read_text())
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    change(payload["predicate"])
    # The library's digest of all digests, in the order of the list.
    digests = b"".join(bytes.fromhex(one["digest"]) for one in payload["predicate"]["resources"])
    payload["subject"][0]["digest"]["sha256"] = sha256_bytes(digests)
    sealed = json.loads(sealed_envelope(payload, load_private_key(SigningKey(key=model.key))))
    bundle["dsseEnvelope"] |= {
        "payload": sealed["payload"],
        "signatures": [{"sig": sealed["signatures"][0]["sig"], "keyid": ""}],
    }
    path.write_text(json.dumps(bundle))


def test_resigning_without_a_change_passes(signed: SignedModel) -> None:
    resign(signed, lambda predicate: None)
    assert judged(signed).passed, judged(signed).reason


def with_resource(name: str) -> Callable[[dict[str, object]], None]:
    def add(predicate: dict[str, object]) -> None:
        predicate["resources"].append({"name": name, "algorithm": "sha256", "digest": "0" * 64})  # type: ignore[attr-defined]

    return add


@pytest.mark.parametrize("name", ["../2/model.onnx", "/etc/passwd", "evidence/../../2/model.onnx"])
def test_a_path_in_what_was_signed_that_leaves_the_version(signed: SignedModel, name: str) -> None:
    resign(signed, with_resource(name))
    assert f"what was signed is not this version: {name}" in judged(signed).reason


def test_a_signer_who_left_a_file_out(signed: SignedModel) -> None:
    """The library takes the list of what to ignore from the signature."""

    def leave_out(predicate: dict[str, object]) -> None:
        predicate["resources"] = [one for one in predicate["resources"] if one["name"] != "model.onnx"]  # type: ignore[attr-defined]
        predicate["serialization"] |= {"ignore_paths": ["model.onnx"]}  # type: ignore[operator]

    resign(signed, leave_out)
    assert "what was signed is not this version: model.onnx" in judged(signed).reason


def move_away(path: Path) -> None:
    """Leave a link to it in its place."""
    path.symlink_to(path.rename(path.parent.parent / "elsewhere"))


BESIDE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a backend's library": (
        lambda model: (model / "libtriton_onnxruntime.so").write_bytes(b"\x7fELF"),
        "pets/libtriton_onnxruntime.so does not belong",
    ),
    "a python backend": (lambda model: (model / "model.py").write_text(""), "pets/model.py does not belong"),
    "a folder": (lambda model: (model / "configs").mkdir(), "pets/configs does not belong"),
    "a folder that Triton ignores": (lambda model: (model / "01").mkdir(), "pets/01 does not belong"),
    "a file called like a version": (lambda model: (model / "7").write_bytes(b""), "pets/7 does not belong"),
    "a link": (lambda model: (model / "3").symlink_to(model / "1"), "pets/3 is a link"),
    "another config": (
        lambda model: (model / "config.pbtxt").write_text((model / "config.pbtxt").read_text() + "# edited\n"),
        "pets/config.pbtxt is not the config of version 1",
    ),
    "a config of no version": (
        lambda model: (model / "config.pbtxt").write_text('name: "pets" runtime: "evil.so"'),
        "pets/config.pbtxt names no version",
    ),
    "another sample": (
        lambda model: next((model / "warmup").iterdir()).write_bytes(b"other"),
        "is not the sample of that digest",
    ),
    "a sample more": (lambda model: (model / "warmup" / "more.so").write_bytes(b""), "pets/warmup/more.so is not"),
    "warm-up elsewhere": (
        lambda model: move_away(model / "warmup"),
        "pets/warmup is a link",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("add", "reason"), BESIDE.values(), ids=BESIDE.keys())
def test_what_lies_beside_the_versions(signed: SignedModel, add: Callable[[Path], object], reason: str) -> None:
    add(signed.model)
    found = judged(signed)
    assert not found.passed
    assert reason in found.reason


def test_a_config_that_is_being_written_is_no_stray(signed: SignedModel) -> None:
    (signed.model / ".config.pbtxt.a1b2c3d4").write_bytes(b"")
    assert judged(signed).passed


def seal_other(model: SignedModel, keys: Path) -> None:
    path = model.signature() / "provenance.intoto.json"
    statement = opened_envelope(path.read_bytes(), load_private_key(SigningKey(key=model.key)).public_key())
    path.write_bytes(sealed_envelope(statement, load_private_key(SigningKey(key=keys / "other.key"))))


ATTACHED: dict[str, tuple[Callable[[SignedModel, Path], object], str]] = {
    "no signature": (lambda m, _: (m.signature() / "model.sig").unlink(), "model.sig is missing"),
    "no provenance": (lambda m, _: (m.signature() / "provenance.intoto.json").unlink(), "intoto.json is missing"),
    "no bill of materials": (lambda m, _: (m.signature() / "bom.cdx.json").unlink(), "bom.cdx.json is missing"),
    "another bill of materials": (
        lambda m, _: flip(m.signature() / "bom.cdx.json", -2, 2), "bom.cdx.json is not the one"
    ),
    "provenance by another key": (seal_other, "the provenance is not signed by the key that signed the files"),
    "provenance of another version": (
        lambda m, _: shutil.copy(m.signature(2) / "provenance.intoto.json", m.signature()),
        "the provenance is of other files than those of pets:1",
    ),
    "the signature as provenance": (
        lambda m, _: (m.signature() / "provenance.intoto.json").write_text(
            json.dumps(json.loads((m.signature() / "model.sig").read_text())["dsseEnvelope"])
        ),
        "the provenance is not signed",
    ),
    "an empty signature": (lambda m, _: (m.signature() / "model.sig").write_bytes(b""), "cannot be verified"),
    "a signature of nothing": (lambda m, _: (m.signature() / "model.sig").write_bytes(b"{}"), "cannot be verified"),
    "a signature that is a link": (
        lambda m, _: move_away(m.signature() / "model.sig"),
        "model.sig is no regular file",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "reason"), ATTACHED.values(), ids=ATTACHED.keys())
def test_what_lies_with_the_signature(
    signed: SignedModel, keys: Path, spoil: Callable[[SignedModel, Path], object], reason: str
) -> None:
    spoil(signed, keys)
    found = judged(signed)
    assert not found.passed
    assert reason in found.reason


@pytest.mark.parametrize("part", ["payload", "sig"])
def test_any_bit_of_the_signed_list_and_of_its_signature(signed: SignedModel, part: str) -> None:
    path = signed.signature() / "model.sig"
    whole = json.loads(path.read_text())
    envelope = whole["dsseEnvelope"]
    holder = envelope if part == "payload" else envelope["signatures"][0]
    data = base64.b64decode(holder[part])
    for position in range(0, len(data), max(1, len(data) // 12)):
        changed = bytearray(data)
        changed[position] ^= 4
        holder[part] = base64.b64encode(bytes(changed)).decode()
        path.write_text(json.dumps(whole))
        assert not judged(signed).passed, position


def test_another_key_does_not_count(signed: SignedModel, keys: Path) -> None:
    found = check_signature(signed.version(), Trust(public_key=keys / "other.pub"))
    assert not found.passed
    assert "does not match the provided public key" in found.reason


def test_no_signature_is_no_pass(signed: SignedModel) -> None:
    shutil.rmtree(signed.model / "attestations")
    assert judged(signed).reason == "pets:1 is not signed"


def test_one_signature_that_counts_is_enough(signed: SignedModel, keys: Path) -> None:
    """Two parties sign one version; what one of them made is spoilt, and the other's still counts."""
    added = sign(signed.repository, "pets:1", SigningKey(key=keys / "other.key"))
    other = Trust(public_key=keys / "other.pub")
    assert judged(signed).passed
    assert check_signature(signed.version(), other).passed
    (added.folder / "model.sig").unlink()
    assert judged(signed).passed
    assert not check_signature(signed.version(), other).passed


def test_an_unsigned_version_beside_signed_ones(signed: SignedModel) -> None:
    put(signed.repository, Sample(weights=b"the third"))
    found = judged(signed, 3)
    assert not found.passed
    assert "signed" in found.reason
