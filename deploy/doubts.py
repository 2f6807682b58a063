"""What a failed proof may be the fault of beside the model: work that was kept from before, and packed weights.

Owns which of them is in doubt, and what is said of it; what is then done is in steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from deploy.convert.aoti_prepack import is_packed
from deploy.convert.model import Artifact
from deploy.convert.run import Conversion
from deploy.validate.run import Proof


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """A conversion to be made anew, in a folder of this `name`, without the cache, which loses its `keys`.

    `packed` is whether weights may be packed in it.
    """

    name: str
    says: str
    keys: tuple[str, ...]
    packed: bool = True


def kept_work(conversion: Conversion, proof: Proof) -> Doubt | None:
    """Doubt of work from the cache that failed its proof here: of code, of an export and what came of it."""
    failed = list(_failed(conversion, proof))
    program = conversion.program.reused if failed else None
    keys = (program, *(one.reused or (one.kept if program else None) for one in failed))
    if not any(keys):
        return None
    says = "what was compiled before failed its proof: all is compiled again"
    return Doubt(name="again", says=says, keys=tuple(key for key in keys if key))


def packed_weights(conversion: Conversion, proof: Proof) -> Doubt | None:
    """Doubt of AOTInductor's packed weights, where its numbers alone are wrong: else it is the model or the samples."""
    failed = list(_failed(conversion, proof))
    if [one.format for one in failed] != ["aoti"] or not is_packed(failed[0].details):
        return None
    says = "AOTInductor failed its proof with packed weights: all is compiled again, with weights as they are"
    return Doubt(name="unpacked", says=says, keys=(failed[0].kept,) if failed[0].kept else (), packed=False)


def _failed(conversion: Conversion, proof: Proof) -> Iterator[Artifact]:
    """The artifacts that failed; none where eager itself is refuted: nothing that was made of it was asked then."""
    if proof.behaviour.status == "refuted":
        return
    for name, artifact in conversion.artifacts.items():
        if not proof.evidence[name].judgement.passed:
            yield artifact
