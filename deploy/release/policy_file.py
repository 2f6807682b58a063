"""What an environment demands of a version before it is promoted there: the table [promote] of a TOML file.

Owns the keys; reading and refusing is `deploy.settings`'s, and whether a version meets them is judged in `policy`.
Called by the command `promote`.
"""

from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from deploy.files import sha256_file
from deploy.records import Record
from deploy.settings import read_table

Required = Literal["slo", "diff", "bench", "signature"]
REQUIRED: tuple[Required, ...] = get_args(Required)
TABLE = "promote"

# What a key is about: saying it without demanding that would be a limit that nothing is held to.
_ABOUT: dict[str, tuple[Required, ...]] = {
    "max_p99_ms": ("slo",),
    "min_rate": ("slo",),
    "max_flips": ("diff",),
    "max_flipped_rows": ("diff",),
    "max_accuracy_drop": ("diff",),
    "max_error": ("diff",),
    "max_slowdown": ("bench", "diff"),
    "max_age_days": ("slo", "diff", "bench"),
}


class PromotionPolicy(Record):
    """What must be there. A limit of None leaves it to whoever asked; ages are in days, times in milliseconds.

    `require` names the attestations that must have passed, the newest of each kind. `architecture` is the least that
    must be known of whose model it is. `targets` are those a version may be built for; empty for any.
    """

    require: tuple[Required, ...] = ()
    max_age_days: float | None = Field(default=None, gt=0)
    max_evidence_age_days: float | None = Field(default=None, gt=0)
    require_native: bool = False
    architecture: Literal["confirmed", "unconfirmed"] = "unconfirmed"
    allow_unsafe: bool = False
    targets: tuple[str, ...] = ()
    max_p99_ms: float | None = Field(default=None, gt=0)
    min_rate: float | None = Field(default=None, gt=0)
    max_flips: float | None = Field(default=None, gt=0, le=1)
    max_flipped_rows: int | None = Field(default=None, ge=0)
    max_accuracy_drop: float | None = Field(default=None, ge=0, le=1)
    max_error: float | None = Field(default=None, gt=0)
    max_slowdown: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _demanded(self) -> Self:
        for key, kinds in _ABOUT.items():
            if getattr(self, key) is not None and not set(kinds) & set(self.require):
                wanted = " or ".join(f'"{kind}"' for kind in kinds)
                raise ValueError(f"{key} is about {wanted}, which `require` does not name")
        return self


class Environment(Record):
    """A policy with the name of its file, `production` for `environments/production.toml`, and the file's digest."""

    name: str
    sha256: str
    policy: PromotionPolicy


def read_environment(path: Path) -> Environment:
    """The environment that a TOML file describes.

    Raises UsageError if there is no such file or table, or a key or value in it that nobody can mean.
    """
    policy = read_table(path, TABLE, PromotionPolicy, tables=(TABLE,))
    return Environment(name=path.stem, sha256=sha256_file(path), policy=policy)
