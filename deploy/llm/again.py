"""A published language model held against a target, and served once more: what `verify` asks of this room.

Owns no check of its own. Called by verify.
"""

from deploy.errors import DeployError
from deploy.evidence import Judgement, ServedEvidence
from deploy.llm.records import TOKENS_FILE, TokensEvidence
from deploy.llm.served import check_served_llm
from deploy.llm.support import check_architecture
from deploy.repository.layout import Version
from deploy.repository.manifest import Manifest
from deploy.serve.engines import Engine
from deploy.targets import Target


def llm_misfits(manifest: Manifest, target: Target) -> list[str]:
    """Why the target cannot run a version, one sentence each; empty if it can."""
    found = []
    if target.device != manifest.target.device or target.sm != manifest.target.sm:
        found.append(f"its memory was computed for {manifest.target.name}, and {target.name} is another device")
    try:
        check_architecture(manifest.checkpoint.architecture, target)
    except DeployError as error:
        found.append(error.found)
    return found


def serve_again(version: Version, engine: Engine) -> ServedEvidence | Judgement:
    """The evidence of serving it with the prompts it was proven with; undecided where it never was.

    Raises MissingError without vLLM, ServerFailed if it does not get ready.
    """
    path = version.evidence / TOKENS_FILE
    if not path.exists():
        reason = "packaged with --no-serve-check, so there are no tokens to compare with"
        return Judgement.undecided(reason)
    return check_served_llm(version, engine, TokensEvidence.read(path).reference).evidence
