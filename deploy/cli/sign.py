"""`deployctl sign REPOSITORY NAME[:N]`: sign a version, with its provenance and bill of materials.

Owns the words on the terminal. The work is `deploy.release.sign`'s.
"""

import json
import os
from pathlib import Path
from typing import Any

import click

from deploy.cli.options import config_option
from deploy.errors import UsageError

_FILE = click.Path(path_type=Path)


@click.command("sign")
@click.argument("repository", type=click.Path(path_type=Path))
@click.argument("reference", metavar="NAME[:N]")
@click.option("--key", type=_FILE, required=True, metavar="FILE", help="The EC private key that signs, as PEM.")
@click.option("--password-env", metavar="VAR", help="The variable that holds the key's password.")
@click.option("--certificate", type=_FILE, metavar="FILE", help="The key's certificate, which says whose it is.")
@click.option(
    "--chain", type=_FILE, multiple=True, metavar="FILE", help="Certificates between it and the root; repeatable."
)
@click.option("--builder-id", metavar="URI", help="Who built the version, for the provenance: a CI workflow's URL.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(*, repository: Path, reference: str, builder_id: str | None, as_json: bool, **given: Any) -> None:
    """Sign NAME (its promoted version) or NAME:N of REPOSITORY, offline, with OpenSSF model-signing.

    The signature lies beside the version, with SLSA provenance and a CycloneDX bill of materials, and covers what
    `slo`, `diff` and `bench` have attested of it until then. `deployctl verify --signature` checks all of it.
    """
    from deploy.release.keys import SigningKey
    from deploy.release.provenance import UNKNOWN_BUILDER
    from deploy.release.sign import sign

    signing = SigningKey(password=_password(given.pop("password_env")), **given)
    signed = sign(repository, reference, signing, builder=_uri(builder_id) if builder_id else UNKNOWN_BUILDER)
    if as_json:
        facts = signed.record.plain()
        paths = {"folder": str(signed.folder), "attestation": str(signed.attestation)}
        click.echo(json.dumps(facts | paths | {"exit_code": 0}, indent=2))
        return
    click.echo(f"{signed.version} is signed by {signed.record.signer}")
    for name in signed.record.files:
        click.echo(f"  {signed.folder / name}")


def _password(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not os.environ.get(variable):
        raise UsageError(
            f"the environment variable {variable} is not set",
            expected="the password of the key in it",
            fix=f"set {variable} for this command only",
        )
    return os.environ[variable]


def _uri(text: str) -> str:
    scheme, colon, rest = text.partition(":")
    if not (scheme.isascii() and scheme[:1].isalpha() and colon and rest):
        raise UsageError(f"{text!r} is no URI", expected="--builder-id such as https://ci.example/workflows/release")
    return text
