"""A version is promoted where an environment's demands are met, and a server takes it up where one is named.

Owns the order of the steps; demands are judged in `policy`, the server is told in `rollout`. Called by the commands
`promote` and `rollback`.

    1. See that the server answers, before anything is promoted.
    2. Judge every demand of the environment; promote nothing where one is not met.
    3. Promote, with the environment and what was relied on in the history.
    4. Let the server take it up; where it does not, go back to what was promoted before.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deploy.errors import ExitCode
from deploy.evidence import Judgement
from deploy.release.demand import Candidate, Demand
from deploy.release.policy import demands, overall
from deploy.release.policy_file import Environment, PromotionPolicy, read_environment
from deploy.release.rollout import Rollout, ServerAddress, connected, roll_out
from deploy.release.signatures import check_signatures
from deploy.repository.find import find_version
from deploy.repository.history import Approval
from deploy.repository.integrity import require_intact
from deploy.repository.layout import Version
from deploy.repository.promotion import Promoted, promote, rollback

# A flag alone demands what it says and no more.
ONLY_NATIVE = PromotionPolicy(require_native=True, allow_unsafe=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionRequest:
    """What the user asked for: `reference` is `NAME:N`, `environment` the file that says what must be there."""

    repository: Path
    reference: str
    environment: Path | None = None
    require_native: bool = False
    server: ServerAddress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether the demands are met: each with its verdict, and that on the whole. `environment` is the file's name."""

    environment: str | None
    demands: tuple[Demand, ...]
    judgement: Judgement


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionResult:
    """What came of it. `decision` is None where nothing was demanded, `promoted` where a demand was not met.

    `rollout` is None without a server.
    """

    version: Version
    decision: Decision | None
    promoted: Promoted | None
    rollout: Rollout | None = None

    @property
    def exit_code(self) -> ExitCode:
        """1 where a demand was not met, or the server did not take the version up; else 0."""
        taken_up = self.rollout is None or self.rollout.judgement.passed
        return ExitCode.OK if self.promoted and taken_up else ExitCode.NO


def run_promotion(request: PromotionRequest) -> PromotionResult:
    """Promote a version if it meets what is demanded, and see a server take it up.

    Raises UsageError if there is no such version or it has changed; UnfinishedError if the server cannot be reached,
    Triton would reject the config, or another version was promoted meanwhile.
    """
    version = find_version(request.repository, request.reference)
    environment = read_environment(request.environment) if request.environment else None
    policy = _policy(environment, require_native=request.require_native)
    if request.server is None:
        return _judge_and_promote(version, policy, environment)
    with connected(request.server) as client:  # 1
        result = _judge_and_promote(version, policy, environment)
        if result.promoted is None:
            return result
        rollout = roll_out(client, result.promoted, seconds=request.server.seconds)  # 4
    return PromotionResult(version=version, decision=result.decision, promoted=result.promoted, rollout=rollout)


def promote_under(
    policy: PromotionPolicy,
    version: Version,
    *,
    environment: Environment | None = None,
) -> PromotionResult:
    """Promote a version if it meets every demand of the policy; say which it does not meet otherwise."""
    check = partial(check_signatures, trust=policy.trust) if policy.trust else None
    candidate = Candidate.of(version, require_intact(version), check_signature=check)
    found = demands(policy, candidate)  # 2
    name = environment.name if environment else None
    decision = Decision(environment=name, demands=found, judgement=overall(found))
    if not decision.judgement.passed:
        return PromotionResult(version=version, decision=decision, promoted=None)
    approval = Approval(
        environment=name,
        policy_sha256=environment.sha256 if environment else None,
        instead_of=candidate.promoted,
        relied=tuple(one.relied for one in found if one.relied),
        met=tuple(f"{one.name}: {one.judgement.reason}" for one in found),
    )
    promoted = promote(version.repository, version.name, version.number, approval=approval)  # 3
    return PromotionResult(version=version, decision=decision, promoted=promoted)


def run_rollback(
    repository: Path, name: str, *, to: int | None = None, server: ServerAddress | None = None
) -> PromotionResult:
    """Go back to the version promoted before, or to the earlier one numbered `to`, and see a server take it up.

    It stands whatever the server does. Raises as `deploy.repository.promotion.rollback` does, and UnfinishedError if
    the server cannot be reached, before anything is changed.
    """
    if server is None:
        promoted = rollback(repository, name, to=to)
        return PromotionResult(version=promoted.version, decision=None, promoted=promoted)
    with connected(server) as client:
        promoted = rollback(repository, name, to=to)
        rollout = roll_out(client, promoted, seconds=server.seconds, undo=False)
    return PromotionResult(version=promoted.version, decision=None, promoted=promoted, rollout=rollout)


def _judge_and_promote(
    version: Version, policy: PromotionPolicy | None, environment: Environment | None
) -> PromotionResult:
    if policy is not None:
        return promote_under(policy, version, environment=environment)
    promoted = promote(version.repository, version.name, version.number)
    return PromotionResult(version=version, decision=None, promoted=promoted)


def _policy(environment: Environment | None, *, require_native: bool) -> PromotionPolicy | None:
    """The policy that file and flag make together; None where neither was given."""
    if environment is None:
        return ONLY_NATIVE if require_native else None
    policy = environment.policy
    return policy.model_copy(update={"require_native": True}) if require_native else policy
