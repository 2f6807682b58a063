"""The second main job: a published version is proven again, as it lies there.

Owns the order of the steps; each one's work lives in its own room. Called by the command `verify`. This process
never imports torch, and with `static` nothing of the version is loaded at all.

    1. Digests: every file is the one the manifest names, and no other is there, nor beside the versions. What fails
       this is looked into no further.
    2. Signature, where it was asked for: somebody trusted signed exactly these files.
    3. Lint: Triton would accept the version's config, and the model's where the version is promoted.
    4. Target: what is built in can run on the target it was built for, or on the one that is asked about.
    5. Served parity: a real tritonserver's answers to the evidence's own samples, judged by the same budgets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.device import fitted
from deploy.ensemble.served import check_published
from deploy.errors import DeployError, ExitCode
from deploy.evidence import Judgement, ServedEvidence
from deploy.gpu import visible_gpu
from deploy.llm.again import llm_misfits, serve_again
from deploy.progress import Progress, Silent
from deploy.release.signatures import Trust, check_signature, check_trust
from deploy.repository.find import find_version, list_models, read_manifest
from deploy.repository.integrity import changes, config_strays
from deploy.repository.layout import CONFIG_FILE, Version, promoted_version
from deploy.repository.lint import lint
from deploy.repository.manifest import Manifest
from deploy.repository.preflight import preflight, read_subject
from deploy.serve.engines import Engine
from deploy.serve.parity import ServedQuestion, check_served
from deploy.targets import LOCAL_CUDA, Target, all_targets
from deploy.validate.store import load_baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedVersion:
    """One version's verdicts by check, in the order they were made; `served` is None where nothing was served."""

    version: Version
    checks: dict[str, Judgement]
    served: ServedEvidence | None

    @property
    def passed(self) -> bool:
        """True if every check passed."""
        return all(judgement.passed for judgement in self.checks.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """Every version that was looked at."""

    versions: tuple[VerifiedVersion, ...]

    @property
    def exit_code(self) -> ExitCode:
        """0 where every check of every version passed, else 1. Nothing to look at is no pass."""
        return ExitCode.OK if self.versions and all(one.passed for one in self.versions) else ExitCode.NO


def verify(
    repository: Path,
    reference: str | None,
    *,
    engine: Engine | None,
    trust: Trust | None = None,
    target: Target | None = None,
    progress: Progress = Silent(),
) -> VerifyResult:
    """The verdicts on one version (`NAME[:N]`), or on every version of the repository.

    `engine` of None stands for a static check; with `trust` each version must carry a signature that counts; `target`
    is the one to preflight, by default each version's own. Raises UsageError if there is no such version, or whom to
    trust cannot be read; MissingError without the extra for that.
    """
    if trust is not None:
        check_trust(trust)
    asked = _Asked(engine=engine, trust=trust, target=target)
    return VerifyResult(
        versions=tuple(_verify_one(version, asked, progress) for version in _versions(repository, reference))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What is asked of each version."""

    engine: Engine | None
    trust: Trust | None
    target: Target | None


def _versions(repository: Path, reference: str | None) -> Sequence[Version]:
    if reference is not None:
        return [find_version(repository, reference)]
    return [model.version(number) for model in list_models(repository) for number in model.versions]


def _verify_one(version: Version, asked: _Asked, progress: Progress) -> VerifiedVersion:
    checks: dict[str, Judgement] = {}
    served = None
    with progress.stage(f"verify {version}"):
        try:
            manifest = read_manifest(version)
        except DeployError as error:
            return VerifiedVersion(version=version, checks={"digests": Judgement.no(error.found)}, served=None)
        checks["digests"] = _judged(lambda: _changed(version, manifest), "every file is as it was published")
        if asked.trust is not None:
            checks["signature"] = check_signature(version, asked.trust)
        if checks["digests"].passed:
            # Only then: what is not what was published may not even be a config, or an archive.
            checks["lint"] = _judged(lambda: _lint(version), "Triton would accept the config")
            checks["target"] = _check_target(version, manifest, asked.target or _own_target(manifest))
        # Nothing that is not what was published is loaded: a model.pt2 is native code.
        # A step in Python answers nothing by itself: its ensemble is asked.
        engine = asked.engine if manifest.format != "python" else None
        if engine is not None and all(judgement.passed for judgement in checks.values()):
            served = _serve(version, manifest, engine)
            checks["served"] = served if isinstance(served, Judgement) else served.judgement
    return VerifiedVersion(
        version=version, checks=checks, served=served if isinstance(served, ServedEvidence) else None
    )


def _check_target(version: Version, manifest: Manifest, target: Target) -> Judgement:
    """What is compiled is held against the target; Python and an ensemble run wherever the server does."""
    if manifest.format in ("python", "ensemble"):
        needs = " ".join(f"{name} {version}" for name, version in manifest.artifact.items())
        reason = f"nothing is compiled; proven with {needs}" if needs else "nothing is compiled; its steps are versions"
        return Judgement.yes(reason)
    return _judged(lambda: _misfits(version, manifest, target), _fits(target, manifest))


def _judged(find: Callable[[], Sequence[str]], good: str) -> Judgement:
    """Pass with the reason `good` if nothing is found; what is found, or an error met while looking, is a fail."""
    try:
        found = find()
    except DeployError as error:
        return Judgement.no(error.found)
    return Judgement.no("; ".join(found)) if found else Judgement.yes(good)


def _changed(version: Version, manifest: Manifest) -> list[str]:
    """What is not as it was published: in the version, beside it, and in the config that makes Triton serve it."""
    return [*changes(version, manifest), *config_strays(version)]


def _lint(version: Version) -> list[str]:
    findings = list(lint(version.config.read_text(), folder=version.model_folder))
    if promoted_version(version.model_folder) == version.number:
        served = (version.model_folder / CONFIG_FILE).read_text()
        findings += lint(served, folder=version.model_folder)
    return sorted({str(finding) for finding in findings})


def _own_target(manifest: Manifest) -> Target:
    """The target it was built for, with what is known of that today, which may be more than when it was built."""
    recorded = manifest.target
    if recorded.name == LOCAL_CUDA:
        # This machine's GPU where it has one; without, what the version was made for is all there is to compare with.
        gpu = visible_gpu()
        return recorded if gpu is None else fitted(recorded, gpu)
    return all_targets().get(recorded.name, recorded).with_isa(recorded.cpu_isa)


def _misfits(version: Version, manifest: Manifest, target: Target) -> list[str]:
    return (
        llm_misfits(manifest, target)
        if manifest.format == "vllm"
        else preflight(read_subject(version, manifest), target)
    )


def _fits(target: Target, manifest: Manifest) -> str:
    if manifest.format == "vllm":
        return f"fits target {target.name}"
    assumed = "" if target.onnxruntime or target.triton is None else "; its ONNX Runtime is not known"
    return f"fits target {target.name}{assumed}"


def _serve(version: Version, manifest: Manifest, engine: Engine) -> ServedEvidence | Judgement:
    try:
        if manifest.format == "vllm":
            return serve_again(version, engine)
        if manifest.format == "ensemble":
            return check_published(version, engine)
        baseline = load_baseline(version.evidence, manifest.spec)
        question = ServedQuestion(baseline=baseline, format=manifest.compiled, classes=manifest.classes)
        return check_served(version, engine, question)
    except DeployError as error:
        return Judgement.no(str(error))
