"""`deployctl sign` and `verify --signature` as people run them: exit codes, words, secrets, what stays untouched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deploy.cli.main import cli
from deploy.errors import DeployError, MissingError, UsageError
from deploy.release.keys import SigningKey, fingerprint, load_public_key
from deploy.release.sign import sign
from deploy.release.signatures import Trust, check_signature
from deploy.repository.manifest import version_digest
from deploy.repository.signed import SignatureRecord
from tests.release.conftest import SignedModel, put_full
from tests.release.pki import PASSWORD, make_leaf, make_root, write_key, write_rsa_key
from tests.repository.samples import Sample


def run(*arguments: object, **variables: str) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], env=variables, prog_name="deployctl")


def failed(*arguments: object, **variables: str) -> DeployError:
    result = run(*arguments, **variables)
    assert isinstance(result.exception, DeployError), result.output
    return result.exception


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    put_full(tmp_path / "models", Sample())
    return tmp_path / "models"


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_sign_and_verify_in_words(repository: Path, keys: Path) -> None:
    signed = run("sign", repository, "pets", "--key", keys / "release.key")
    name = fingerprint(load_public_key(keys / "release.pub"))
    assert signed.exit_code == 0, signed.output
    assert signed.stdout.splitlines()[0] == f"pets:1 is signed by key {name}"
    verified = run("verify", repository, "pets", "--static", "--signature", "--public-key", keys / "release.pub")
    assert verified.exit_code == 0, verified.output
    assert "pets:1 signature" in verified.stdout


def test_json_says_who_with_what_and_where(repository: Path, keys: Path) -> None:
    printed = json.loads(run("sign", repository, "pets:1", "--key", keys / "release.key", "--json").stdout)
    record = SignatureRecord.read(Path(printed["attestation"]))
    assert (record.version, record.digest) == ("pets:1", version_digest(repository / "pets" / "1"))
    assert record.mode == "key"
    assert record.fingerprint == printed["fingerprint"]
    assert {"deployctl", "model-signing"} <= record.tools.keys()
    assert sorted(record.files) == ["bom.cdx.json", "model.sig", "provenance.intoto.json"]
    assert {path.name for path in Path(printed["folder"]).iterdir()} == set(record.files)
    verified = run(
        "verify", repository, "pets", "--static", "--signature", "--public-key", keys / "release.pub", "--json"
    )
    checks = json.loads(verified.stdout)["versions"][0]["checks"]
    assert checks["signature"]["verdict"] == "pass"
    assert record.fingerprint in checks["signature"]["reason"]


def test_the_fingerprint_is_the_one_that_openssl_shows(keys: Path) -> None:
    shown = subprocess.run(
        f"openssl pkey -pubin -in {keys / 'release.pub'} -outform DER | sha256sum",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert fingerprint(load_public_key(keys / "release.pub")) == f"sha256:{shown.stdout.split()[0]}"


def test_the_version_is_not_touched_and_the_key_is_not_copied(repository: Path, keys: Path) -> None:
    before = snapshot(repository / "pets" / "1")
    sign(repository, "pets", SigningKey(key=keys / "release.key"))
    assert snapshot(repository / "pets" / "1") == before
    secret = (keys / "release.key").read_bytes().splitlines()[1]
    assert not [path for path in repository.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert not list(repository.rglob(".signing-*"))


def test_the_library_s_own_command_line_verifies_it_too(repository: Path, keys: Path) -> None:
    signed = sign(repository, "pets", SigningKey(key=keys / "release.key"))
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(signed.version.folder)]
    options = ["--signature", str(signed.folder / "model.sig"), "--public_key", str(keys / "release.pub")]
    result = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (signed.version.folder / "labels.txt").write_text("other\n")
    assert subprocess.run([*command, *options], capture_output=True, check=False).returncode != 0


def test_signing_twice_keeps_both(repository: Path, keys: Path) -> None:
    folders = {sign(repository, "pets", SigningKey(key=keys / "release.key")).folder for _ in range(2)}
    assert len(folders) == 2
    records = list((repository / "pets" / "attestations").glob("*/signature-*.json"))
    assert len(records) == 2


@pytest.mark.parametrize("number", [256, 384, 521])
def test_each_curve_that_model_signing_takes(repository: Path, tmp_path: Path, number: int) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    curve = {256: ec.SECP256R1(), 384: ec.SECP384R1(), 521: ec.SECP521R1()}[number]
    signed = sign(repository, "pets", SigningKey(key=write_key(tmp_path, "key", curve=curve)))
    assert check_signature(signed.version, Trust(public_key=tmp_path / "key.pub")).passed


def test_an_encrypted_key_and_its_password_which_nobody_sees(repository: Path, tmp_path: Path) -> None:
    key = write_key(tmp_path, "locked", password=PASSWORD)
    signed = run("sign", repository, "pets", "--key", key, "--password-env", "KEY_PASSWORD", KEY_PASSWORD=PASSWORD)
    assert signed.exit_code == 0, signed.output
    wrong = failed("sign", repository, "pets", "--key", key, "--password-env", "KEY_PASSWORD", KEY_PASSWORD="wr0ng")
    assert "no private key that this password opens" in wrong.found
    assert "wr0ng" not in str(wrong)
    assert "--password-env" in str(failed("sign", repository, "pets", "--key", key))
    unset = failed("sign", repository, "pets", "--key", key, "--password-env", "NO_SUCH_VARIABLE")
    assert "NO_SUCH_VARIABLE is not set" in unset.found
    texts = [signed.output, *(path.read_text() for path in repository.rglob("signature-*/*"))]
    texts += [path.read_text() for path in repository.rglob("signature-*.json")]
    assert len(texts) > 2
    assert not [text for text in texts if PASSWORD in text or "KEY_PASSWORD" in text]
    assert PASSWORD not in repr(SigningKey(key=key, password=PASSWORD))
    assert check_signature_of(repository, tmp_path / "locked.pub")


def check_signature_of(repository: Path, public: Path) -> bool:
    from deploy.repository.find import find_version

    return check_signature(find_version(repository, "pets"), Trust(public_key=public)).passed


def test_a_password_for_a_key_that_has_none(repository: Path, keys: Path) -> None:
    options = ("--key", keys / "release.key", "--password-env", "P")
    assert "is not encrypted" in failed("sign", repository, "pets", *options, P="x").found


def bad_key(folder: Path, kind: str) -> Path:
    from cryptography.hazmat.primitives.asymmetric import ec

    path = folder / "bad.key"
    if kind == "rsa":
        return write_rsa_key(folder, "bad")
    if kind == "curve":
        return write_key(folder, "bad", curve=ec.SECP256K1())
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "large":
        path.write_bytes(b"-" * 2_000_000)
    elif kind == "text":
        path.write_text("-----BEGIN PRIVATE KEY-----\nnot base64\n-----END PRIVATE KEY-----\n")
    return path


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "large", "text", "rsa", "curve"])
def test_a_key_that_cannot_sign_is_bad_input_and_leaves_nothing(repository: Path, tmp_path: Path, kind: str) -> None:
    error = failed("sign", repository, "pets", "--key", bad_key(tmp_path, kind))
    assert isinstance(error, UsageError)
    assert "bad.key" in error.found
    assert not (repository / "pets" / "attestations").exists()


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "large", "text", "rsa", "curve"])
def test_a_key_that_cannot_verify_is_bad_input(signed: SignedModel, tmp_path: Path, kind: str) -> None:
    path = bad_key(tmp_path, kind)
    public = path.with_suffix(".pub") if kind in ("rsa", "curve") else path
    error = failed("verify", signed.repository, "pets", "--static", "--signature", "--public-key", public)
    assert isinstance(error, UsageError)


def test_a_private_key_is_no_public_one(signed: SignedModel) -> None:
    error = failed("verify", signed.repository, "pets", "--static", "--signature", "--public-key", signed.key)
    assert "holds a private key" in error.found
    assert "openssl pkey" in error.fix


def test_options_that_do_not_go_together(signed: SignedModel, keys: Path) -> None:
    verify = ("verify", signed.repository, "pets", "--static")
    public = ("--public-key", signed.public)
    assert "no signature was asked for" in failed(*verify, *public).found
    assert "whose signature counts" in failed(*verify, "--signature").found
    both = ("--certificate-chain", signed.public)
    assert "were both given" in failed(*verify, "--signature", *public, *both).found
    assert "a key has no identity" in failed(*verify, "--signature", *public, "--identity", "x").found
    chain = ("sign", signed.repository, "pets", "--key", signed.key, "--chain", signed.public)
    assert "without a certificate" in failed(*chain).found
    builder = ("sign", signed.repository, "pets", "--key", signed.key, "--builder-id", "our pipeline")
    assert "is no URI" in failed(*builder).found


def test_a_certificate_with_the_wrong_key_or_a_locked_one(repository: Path, keys: Path, tmp_path: Path) -> None:
    certificate = make_leaf(tmp_path, "leaf", make_root(tmp_path, "root"))
    wrong = failed("sign", repository, "pets", "--key", keys / "release.key", "--certificate", certificate)
    assert "is not the certificate of" in wrong.found
    locked = write_key(tmp_path, "locked", password=PASSWORD)
    both = ("--key", locked, "--certificate", certificate)
    assert "not encrypted beside a certificate" in failed("sign", repository, "pets", *both).expected
    with_password = failed("sign", repository, "pets", *both, "--password-env", "P", P=PASSWORD)
    assert "takes no password" in with_password.found
    no_certificate = ("--key", tmp_path / "leaf.key", "--certificate", keys / "release.pub")
    assert "holds no certificate" in failed("sign", repository, "pets", *no_certificate).found


def test_only_what_was_published_is_signed(repository: Path, keys: Path) -> None:
    (repository / "pets" / "libtriton_onnxruntime.so").write_bytes(b"")
    error = failed("sign", repository, "pets", "--key", keys / "release.key")
    assert "pets/libtriton_onnxruntime.so" in error.found
    (repository / "pets" / "libtriton_onnxruntime.so").unlink()
    (repository / "pets" / "1" / "model.onnx").write_bytes(b"")
    assert "model.onnx has changed" in failed("sign", repository, "pets", "--key", keys / "release.key").found
    assert not (repository / "pets" / "attestations").exists()


def test_verify_says_no_to_what_is_not_signed(repository: Path, keys: Path) -> None:
    result = run(
        "verify", repository, "pets", "--static", "--signature", "--public-key", keys / "release.pub", "--json"
    )
    assert result.exit_code == 1
    assert json.loads(result.stdout)["versions"][0]["checks"]["signature"]["reason"] == "pets:1 is not signed"


BLOCKED = """
import sys
sys.modules[{module!r}] = None
from deploy.cli.main import main
main()
"""


@pytest.mark.parametrize("module", ["model_signing", "OpenSSL", "securesystemslib"])
@pytest.mark.parametrize("command", ["sign", "verify"])
def test_without_the_extra_nothing_is_begun(signed: SignedModel, module: str, command: str) -> None:
    options = {
        "sign": ["--key", str(signed.key)],
        "verify": ["--static", "--signature", "--public-key", str(signed.public)],
    }[command]
    before = snapshot(signed.repository)
    code = BLOCKED.format(module=module)
    arguments = [sys.executable, "-c", code, command, str(signed.repository), "pets", *options]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == int(MissingError.exit_code), result.stderr
    assert 'pip install "deployctl[sign]"' in result.stderr
    assert snapshot(signed.repository) == before


PROBE = """
import sys
from deploy.cli.main import cli
cli.main(sys.argv[1:], standalone_mode=False)
heavy = ("torch", "onnx", "onnxruntime", "torchvision", "matplotlib")
print([name for name in heavy if name in sys.modules], file=sys.stderr)
"""


def test_signing_imports_nothing_heavy(repository: Path, keys: Path) -> None:
    arguments = ["sign", str(repository), "pets", "--key", str(keys / "release.key")]
    result = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True)
    assert result.stderr.splitlines()[-1] == "[]"
