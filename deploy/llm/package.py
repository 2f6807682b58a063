"""The main job for a language model: a folder becomes a proven, published version for the vLLM backend.

Owns the order of the steps; each one's work lives in its own module. Called by the command `package`. This process
never imports torch: the reference is made in a child, and vLLM runs in an environment of its own.

    1. Find what this machine lacks, before any work: an engine, vLLM, transformers.
    2. Read the folder: config, every shard, tokenizer, chat template, adapters.
    3. Hold architecture and dtype against the vLLM of the target's release, and size the model for the target's GPU.
    4. Stage the weights, the config and the engine arguments, and let vLLM's own AsyncEngineArgs judge those.
    5. Generate with transformers in float64, greedily.
    6. Serve the stage in a real Triton with the real vLLM, and compare the tokens.
    7. Publish it with its digests, by one rename.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.checkpoint.model import Preprocessing
from deploy.evidence import BehaviourEvidence, Judgement, ParityEvidence, ServedEvidence
from deploy.llm.layout import container_folder, engine_arguments, fill_folder, llm_config, llm_spec
from deploy.llm.model import LlmCheckpoint, LlmPlan, LlmRequest, LlmResult
from deploy.llm.read import read_llm
from deploy.llm.records import SIZING_FILE, TOKENS_FILE, Reference, TokensEvidence
from deploy.llm.served import Served, check_served_llm
from deploy.llm.sizing import size_model
from deploy.llm.support import check_arguments, check_support, vllm_of
from deploy.llm.tokens import make_reference, require_transformers
from deploy.processes import Worker
from deploy.progress import Progress, Silent
from deploy.report.child import Reporter
from deploy.report.findings import BEHAVIOUR_FILE, PARITY_FILE, SERVED_FILE
from deploy.report.html import REPORT_FILE
from deploy.repository.contract import check_contract
from deploy.repository.layout import check_name, next_number
from deploy.repository.lint import require_clean
from deploy.repository.manifest import CheckpointOrigin, Environment, Manifest, Verdicts, created_now
from deploy.repository.publish import PublishOptions, publish
from deploy.repository.stage import Stage, open_stage
from deploy.serve.engines import Engine, find_engine
from deploy.serve.server import ServerFailed
from deploy.serve.vllm import Vllm, ask_vllm, find_vllm, installed_vllm
from deploy.slo.prompts import read_prompts

_NOT_DONE = "not done: vLLM was not run (--no-serve-check)"


def plan_llm(request: LlmRequest, *, progress: Progress = Silent()) -> LlmPlan:
    """Steps 2 and 3: what would be published, and nothing written.

    Raises UsageError if the folder is not whole, or the target cannot serve it.
    """
    with progress.stage("read the model"):
        checkpoint = read_llm(request.path, request.adapters)
    name = check_name(request.name or checkpoint.name)
    number = next_number(request.repository / name)
    dtype = request.wishes.dtype or checkpoint.dtype
    check_support(checkpoint, request.target, dtype=dtype)
    sizing = size_model(checkpoint, request.target, request.wishes, dtype=dtype)
    arguments = engine_arguments(checkpoint, sizing, request, name=name, number=number)
    check_arguments(arguments, request.target)
    for note in checkpoint.notes:
        progress.note(note)
    return LlmPlan(
        checkpoint=checkpoint,
        name=name,
        number=number,
        sizing=sizing,
        arguments=arguments,
        vllm=vllm_of(request.target),
    )


def package_llm(request: LlmRequest, *, progress: Progress = Silent()) -> LlmResult:
    """Package a language model, and say what came of it; nothing is published unless every check passed.

    Raises MissingError, UsageError or UnfinishedError as the exit codes have it.
    """
    tools = _check_machine(request)  # 1
    prompts = read_prompts(request.prompts)
    plan = plan_llm(request, progress=progress)  # 2, 3
    check_contract(request.repository, plan.name, _Promise(), accept=request.new_contract)
    with open_stage(request.repository, plan.name, keep_failed=request.keep_failed) as stage:
        run = _Run(request=request, plan=plan, stage=stage, progress=progress)
        arguments = run.fill(installed_vllm())  # 4
        if tools is None:
            tokens, served, judgement = None, None, Judgement.undecided(_NOT_DONE)
        else:
            reference = run.reference(prompts)  # 5
            tokens, served, judgement = run.serve(tools.engine, reference)  # 6
        verdicts = {"engine arguments": arguments, "tokens": judgement}
        if served is not None:
            verdicts["served"] = served.judgement
        published = None
        if tools is None or (judgement.passed and served is not None and served.judgement.passed):
            published = run.publish(tokens, served, judgement)  # 7
    return LlmResult(plan=plan, judgements=verdicts, tokens=tokens, served=served, published=published)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tools:
    """What the served proof needs of this machine."""

    engine: Engine
    vllm: Vllm


@dataclass(frozen=True, slots=True, kw_only=True)
class _Promise:
    """The contract of every version of the backend."""

    format: Any = "vllm"
    spec: Any = None
    classes: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", llm_spec())


def _check_machine(request: LlmRequest) -> _Tools | None:
    """The engine and vLLM, None without a served check. Raises MissingError before any work is done."""
    container_folder(request.mounted_at, "name", 1)
    if not request.serve_check:
        return None
    engine, vllm = find_engine("local"), find_vllm()
    require_transformers()
    return _Tools(engine=engine, vllm=vllm)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One packaging run: what it was asked, what it read, and the stage it fills. One method per step."""

    request: LlmRequest
    plan: LlmPlan
    stage: Stage
    progress: Progress

    def fill(self, vllm: Vllm | None) -> Judgement:
        """Step 4: what vLLM says of the arguments; undecided where it is absent. Raises UsageError if it refuses."""
        folder = self.stage.version.folder
        with self.progress.stage("copy the weights"):
            fill_folder(folder, self.plan.checkpoint, self.plan.arguments)
        config = llm_config(self.stage.name, self.stage.version.number)
        self.stage.add_config(config)
        require_clean(config, folder=self.stage.version.model_folder)
        self.stage.add_evidence(SIZING_FILE, self.plan.sizing.to_json().encode())
        if vllm is None:
            return Judgement.undecided("not done: there is no vLLM on this machine")
        with self.progress.stage("ask vLLM about the engine arguments"):
            answer = ask_vllm(vllm, self.plan.arguments | {"model": str(folder / "weights")})
        return Judgement.yes(
            f"vLLM {vllm.version} takes them: {answer['architecture']}, {answer['dtype']}, "
            f"{answer['max_model_len']:,} tokens"
        )

    def reference(self, prompts: tuple[str, ...]) -> Reference:
        """Step 5, of what lies in the stage, so that it is the very files that are served."""
        with self.progress.stage("generate with transformers"), Worker("reference", log=Path(os.devnull)) as worker:
            found = worker.run(make_reference, self._staged_checkpoint(), prompts, dtype=self.plan.sizing.dtype)
        return found.value

    def serve(
        self, engine: Engine, reference: Reference
    ) -> tuple[TokensEvidence | None, ServedEvidence | None, Judgement]:
        """Step 6. A server that cannot load the version is a verdict too: it fails."""
        try:
            with self.progress.stage("serve with vLLM in a real Triton"):
                served: Served = check_served_llm(self.stage.version, engine, reference, staged=True)
        except ServerFailed as error:
            return None, None, Judgement.no(str(error))
        return served.tokens, served.evidence, served.tokens.judgement

    def publish(self, tokens: TokensEvidence | None, served: ServedEvidence | None, judgement: Judgement) -> Any:
        """Step 7."""
        statement = "architecture: as config.json says, behaviour unconfirmed"
        evidence: dict[str, Any] = {
            BEHAVIOUR_FILE: BehaviourEvidence(status="unconfirmed", statement=statement),
            PARITY_FILE: _as_parity(tokens, judgement),
            SERVED_FILE: served,
            TOKENS_FILE: tokens,
        }
        for name, record in evidence.items():
            if record is not None:
                self.stage.add_evidence(name, record.to_json().encode())
        manifest = self._manifest(judgement, Judgement.undecided(statement), served)
        options = PublishOptions(promote=self.request.promote, new_contract=self.request.new_contract)
        with Reporter(self.stage, manifest) as reporter:
            return publish(self.stage, manifest, options, late={REPORT_FILE: reporter.page})

    def _staged_checkpoint(self) -> LlmCheckpoint:
        folder = self.stage.version.folder
        adapters = tuple(
            one.model_copy(update={"path": folder / "lora" / one.name}) for one in self.plan.checkpoint.adapters
        )
        return self.plan.checkpoint.model_copy(update={"path": folder / "weights", "adapters": adapters})

    def _manifest(self, parity: Judgement, architecture: Judgement, served: ServedEvidence | None) -> Manifest:
        spec, sizing = llm_spec(), self.plan.sizing
        names = [tensor.name for tensor in (*spec.inputs, *spec.outputs)]
        return Manifest(
            name=self.stage.name,
            version=self.stage.version.number,
            format="vllm",
            created=created_now(),
            command=self.request.command,
            spec=spec,
            wire={name: name for name in names},
            classes=None,
            preprocessing=Preprocessing(source="unknown"),
            checkpoint=_origin(self.plan.checkpoint),
            artifact={
                "vllm": self.plan.vllm or "unknown",
                "dtype": sizing.dtype,
                "context": str(sizing.context),
                "tensor_parallel": str(sizing.tensor_parallel),
                "device": sizing.device,
                "mounted_at": self.request.mounted_at,
            },
            target=self.request.target,
            environment=Environment.here(),
            verdicts=Verdicts(parity=parity, architecture=architecture, served=served.judgement if served else None),
            served_check="done" if served else "skipped",
        )


def _origin(checkpoint: LlmCheckpoint) -> CheckpointOrigin:
    return CheckpointOrigin(
        file=checkpoint.path.resolve().name,
        sha256=checkpoint.digest,
        format="safetensors folder",
        architecture=checkpoint.architecture,
        how="config.json",
        options=checkpoint.geometry.model_dump() | {"adapters": [one.name for one in checkpoint.adapters]},
        dtype=checkpoint.dtype,
        parameters=checkpoint.parameters,
        found_under=None,
        weights=None,
        removed_prefixes=(),
        trust_pickle=False,
        notes=checkpoint.notes,
    )


def _as_parity(tokens: TokensEvidence | None, judgement: Judgement) -> ParityEvidence:
    """The comparison of tokens in the form that every report shows; the tokens themselves lie beside it."""
    rows = len(tokens.continuations) if tokens else 0
    made = f"transformers {tokens.reference.transformers} in float64" if tokens else "nothing"
    return ParityEvidence(
        format="vllm",
        judgement=judgement,
        reference=f"greedy tokens of {made}",
        max_limit=0.0,
        l2_limit=0.0,
        cases=("greedy tokens",),
        rows=rows,
        outputs=(),
        seed=0,
    )
