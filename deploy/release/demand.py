"""A version that is to be promoted, and one thing that is demanded of it.

Owns the two values, and which version stands for an ensemble where versions are compared. Made by promotion and
policy; the rules are in `policy` and `attested`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from deploy.evidence import Judgement
from deploy.release.signatures import Signatures
from deploy.repository.find import read_manifest
from deploy.repository.history import Relied
from deploy.repository.layout import CONFIG_FILE, Version, promoted_version
from deploy.repository.manifest import MANIFEST_FILE, Manifest, version_digest

SignatureCheck = Callable[[Version], Signatures]
"""Whether somebody who is trusted signed exactly this version, and what was attested of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """One thing that is demanded: whether it is met, the command that would meet it, and what was relied on."""

    name: str
    judgement: Judgement
    command: str = ""
    relied: Relied | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A version that is to be promoted, whose files were found unchanged, and what was promoted at that moment.

    `promoted_digest` is None where nothing that deployctl published is promoted. `now` is when ages are counted from.
    """

    version: Version
    manifest: Manifest
    promoted: int | None
    promoted_digest: str | None
    check_signature: SignatureCheck | None = None
    signatures: Signatures | None = None
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    @classmethod
    def of(cls, version: Version, manifest: Manifest, *, check_signature: SignatureCheck | None = None) -> "Candidate":
        """The version as it stands now beside the promoted one."""
        number = promoted_version(version.model_folder)
        folder = version.model_folder / str(number)
        digest = version_digest(folder) if (folder / MANIFEST_FILE).is_file() else None
        return cls(
            version=version,
            manifest=manifest,
            promoted=number,
            promoted_digest=digest,
            check_signature=check_signature,
            signatures=check_signature(version) if check_signature else None,
        )

    def compared(self) -> "Candidate":
        """Whose comparison with what is promoted counts: its own, but of an ensemble that of its network.

        That is held against the network which the promoted ensemble runs.
        """
        network = self.manifest.network
        if network is None:
            return self
        before = None
        if self.promoted is not None and self.promoted_digest is not None:
            before = read_manifest(replace(self.version, number=self.promoted)).network
        version = Version(repository=self.version.repository, name=network.model, number=network.version)
        return replace(
            Candidate.of(version, read_manifest(version), check_signature=self.check_signature),
            promoted=before.version if before else None,
            promoted_digest=before.digest if before else None,
            now=self.now,
        )

    def unknown_before(self) -> str:
        """Why nobody can say what a comparison would be with, though a config tells servers; empty where one can."""
        config = f"{self.version.name}/{CONFIG_FILE}"
        if self.promoted_digest is not None or not (self.version.model_folder / CONFIG_FILE).exists():
            return ""
        if self.promoted is None:
            return f"{config} names no version, or Triton could not parse it, so what was promoted is not known"
        return f"{config} names version {self.promoted}, which has no manifest, so nothing is compared with it"

    def command(self, name: str, *arguments: str) -> str:
        """A command line on this version, its repository first."""
        return " ".join(("deployctl", name, str(self.version.repository), *arguments))
