"""What an environment demands of a version before it is promoted there: the table [promote] of a TOML file.

Owns the keys; reading and refusing is `deploy.settings`'s, and whether a version meets them is judged in `policy`.
Called by the command `promote`.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from deploy.errors import UsageError
from deploy.files import sha256_file
from deploy.records import Record
from deploy.release.signatures import Trust
from deploy.settings import LocalPath, read_table

Required = Literal["slo", "diff", "bench", "signature"]
TABLE = "promote"

# What a key is about: saying it without demanding that would be a limit that nothing is held to.
_ABOUT: dict[str, tuple[Required, ...]] = {
    "max_p99_ms": ("slo",),
    "min_rate": ("slo",),
    "min_seconds": ("slo",),
    "max_flips": ("diff",),
    "max_flipped_rows": ("diff",),
    "max_accuracy_drop": ("diff",),
    "max_error": ("diff",),
    "max_slowdown": ("bench", "diff"),
    "max_age_days": ("slo", "diff", "bench"),
    "public_key": ("signature",),
    "certificate_chain": ("signature",),
    "identity": ("signature",),
}


class PromotionPolicy(Record):
    """What must be there. A limit of None leaves it to whoever asked; ages are in days, times in milliseconds.

    `require` names the attestations that must have passed, the newest of each kind. `architecture` is the least that
    must be known of whose model it is. `targets` are those a version may be built for; empty for any. `public_key`, or
    `certificate_chain` with `identity`, says whose signature counts; relative paths begin at the file's folder.
    """

    require: tuple[Required, ...] = Field(default=(), description="Attestations that must have passed.")
    max_age_days: float | None = Field(default=None, gt=0, description="How old those may be.")
    max_evidence_age_days: float | None = Field(default=None, gt=0, description="How long ago it may be packaged.")
    require_native: bool = Field(default=False, description="Only if a native tritonserver served it when proven.")
    architecture: Literal["confirmed", "unconfirmed"] = Field(
        default="unconfirmed", description="The least that is known of whose model it is."
    )
    allow_unsafe: bool = Field(default=False, description="Let a check pass that failed and was accepted as unsafe.")
    targets: tuple[str, ...] = Field(default=(), description="Built for one of these; any if empty.")
    max_p99_ms: float | None = Field(default=None, gt=0, description="The SLO promised a p99 of at most so much.")
    min_rate: float | None = Field(default=None, gt=0, description="The SLO was kept at this rate or a higher one.")
    min_seconds: float | None = Field(default=None, gt=0, description="The SLO rests on so many seconds of load.")
    min_confidence: float = Field(default=0.99, gt=0.5, lt=1, description="The SLO's verdict is at least so sure.")
    max_flips: float | None = Field(default=None, gt=0, le=1, description="The diff allowed no larger share of flips.")
    max_flipped_rows: int | None = Field(default=None, ge=0, description="The diff allowed no more flipped rows.")
    max_accuracy_drop: float | None = Field(default=None, ge=0, le=1, description="The diff allowed no larger drop.")
    max_error: float | None = Field(default=None, gt=0, description="The diff allowed no larger error.")
    max_slowdown: float | None = Field(default=None, gt=0, description="The bench or diff allowed no larger slowdown.")
    public_key: LocalPath | None = Field(default=None, description="Whose signature counts: that of this key.")
    certificate_chain: tuple[LocalPath, ...] = Field(
        default=(), description="Whose signature counts: that of any certificate of this root."
    )
    identity: str | None = Field(default=None, description="Of that root's certificates only those of this subject.")

    @property
    def trust(self) -> Trust | None:
        """Whose signature counts; None where none is demanded."""
        if "signature" not in self.require:
            return None
        return Trust(public_key=self.public_key, certificate_chain=self.certificate_chain, identity=self.identity)

    @model_validator(mode="after")
    def _demanded(self) -> Self:
        for key, kinds in _ABOUT.items():
            if getattr(self, key) not in (None, ()) and not set(kinds) & set(self.require):
                wanted = " or ".join(f'"{kind}"' for kind in kinds)
                raise ValueError(f"{key} is about {wanted}, which `require` does not name")
        try:
            _ = self.trust
        except UsageError as error:
            raise ValueError(f"{error.found}; say public_key or certificate_chain") from error
        return self


class Environment(Record):
    """A policy with the name of its file, `production` for `environments/production.toml`, and the file's digest."""

    name: str
    sha256: str
    policy: PromotionPolicy


def read_environment(path: Path) -> Environment:
    """The environment that a TOML file describes.

    The file may be a whole deploy.toml; what its other tables hold is not looked at here. Raises UsageError if there is
    no such file or table, or a key or value in the table that nobody can mean.
    """
    policy = read_table(path, TABLE, PromotionPolicy)
    return Environment(name=path.stem, sha256=sha256_file(path), policy=policy)
