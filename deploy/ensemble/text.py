"""What lies round a network that reads: texts become its token ids, its outputs labels and scores, or an embedding.

Owns the plan for texts, the refusals, and how the first step is proven; `whole` stages, serves and publishes. Called by
package.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from deploy.checkpoint.model import Checkpoint
from deploy.checkpoint.pretrained_folder import (
    EMBEDDING,
    MASK,
    PIXELS,
    SEQUENCE,
    TOKENS,
    TYPES,
    has_tokenizer,
    open_folder,
)
from deploy.checkpoint.sentence_folder import read_pooling
from deploy.ensemble.configs import Tensor
from deploy.ensemble.inputs import NamedInput
from deploy.ensemble.proof import TEXT, VECTOR, EnsembleQuestion, make_question
from deploy.ensemble.texts import MAX_BYTES, damaged_texts, read_texts, seeded_texts
from deploy.ensemble.tokens import TrainedTexts, count_tokens, read_tokenizer, trained_texts
from deploy.ensemble.transform import require_one_class_of_several
from deploy.ensemble.whole import (
    BEST,
    Design,
    Proven,
    PythonStep,
    deciding,
    instances,
    label_names,
    max_batch,
    scores_step,
)
from deploy.errors import UsageError
from deploy.evidence import Judgement, Verdict
from deploy.processes import Worker
from deploy.records import Record
from deploy.spec import Spec
from deploy.versions import StagedVersion, VersionPlan

PURPOSE = "--ensemble text"
_CLASSIFIER = "ForSequenceClassification"
_PARTS = {TOKENS: "ids", MASK: "mask", TYPES: "types"}


class TextSettings(Record):
    """What the first step is told, in `text.json`: the network's inputs by name, and how many tokens it takes."""

    inputs: dict[str, Literal["ids", "mask", "types"]]
    shortest: int
    longest: int
    max_bytes: int = MAX_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPlan:
    """What was settled before any work: the tokenizer of training, and the texts that the proof is made with.

    `cut_at` is where training cut texts off, None where it did not and longer ones are refused.
    """

    tokenizer: str
    settings: TextSettings
    cut_at: int | None
    texts: tuple[NamedInput, ...]
    damaged: tuple[NamedInput, ...]
    answer: Literal["scores", "embedding"]
    kind: Literal["text"] = "text"
    evidence: str = "tokens.json"

    def prove(self, network: StagedVersion, plan: VersionPlan) -> Proven:
        """The design, the tokens compared with training's own. Raises UsageError if the answers tell nothing apart."""
        output = deciding(plan.spec, self.kind) if self.answer == "scores" else _embedding(plan.spec)
        log = network.stage.work / "logs" / "reference-of-the-ensemble.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with Worker("the reference of the ensemble", log=log) as worker:
            texts = [text.data.decode() for text in self.texts]
            trained = worker.run(
                trained_texts, plan.checkpoint, texts, cut_at=self.cut_at, output=output, threads=plan.threads
            ).value
        width = trained.answers.reference.shape[1]
        scored = self.answer == "scores"
        question = EnsembleQuestion(
            kind=self.kind,
            answer=self.answer,
            names=(),
            damaged=0,
            labels=label_names(plan.classes, width) if scored else (),
            count=min(BEST, width) if scored else 0,
            allowed=0.0,
            max_batch=max_batch(network),
        )
        return Proven(
            design=self._design(plan, output),
            judgement=judge_tokens(self, trained),
            asked=make_question(self.texts, self.damaged, trained.answers, question),
        )

    def _design(self, plan: VersionPlan, output: int) -> Design:
        from deploy.ensemble.models import text

        before = PythonStep(
            inputs=(Tensor(wire=TEXT, dtype="string", dims=(1,)),),
            outputs=tuple(Tensor(wire=name, dtype="int64", dims=(SEQUENCE,)) for name in self.settings.inputs),
            source=Path(text.__file__),
            files={"tokenizer.json": self.tokenizer.encode(), "text.json": self.settings.to_json().encode()},
            instances=instances(plan),
            needs=("numpy", "tokenizers"),
        )
        given = plan.spec.outputs[output]
        if self.answer == "scores":
            after = scores_step(given, plan.classes)
            return Design(before=before, after=after, output=output, outputs=after.outputs)
        embedding = Tensor(wire=VECTOR, dtype=given.dtype, dims=given.shape[1:])
        return Design(before=before, after=None, output=output, outputs=(embedding,))


def plan_texts(checkpoint: Checkpoint, file: Path | None) -> TextPlan:
    """The plan for a checkpoint, with the file's texts and the seeded ones.

    Raises UsageError if the checkpoint is no network that reads one text, its answer is neither classes nor an
    embedding, its tokenizer cannot be served, or a text of the file is none that the network takes.
    """
    answer = _answer(checkpoint)
    own = read_texts(file) if file else ()
    length = next((dim for dim in checkpoint.dims if dim.name == SEQUENCE), None)
    if length is None:
        raise UsageError(
            f"{PURPOSE}: the network takes texts of one length alone",
            expected="one that takes texts as long as they are",
            fix=f"leave {PURPOSE} out: clients fill up their texts",
        )
    with Worker("the tokenizer", log=Path(os.devnull)) as worker:
        tokenizer = worker.run(read_tokenizer, checkpoint, length.maximum).value
        cut_at = length.maximum if tokenizer.cut else None
        tried = (*own, *seeded_texts(tokenizer.drawn))
        texts = [text.data.decode() for text in tried]
        counts = worker.run(count_tokens, checkpoint, texts, cut_at=cut_at).value
    fits = [length.minimum <= count <= length.maximum for count in counts]
    for text, fit, count in zip(own, fits, counts, strict=False):
        if not fit:
            raise UsageError(
                f"--texts: {text.name} has {count} tokens",
                expected=f"{length.minimum} to {length.maximum}, which the network takes",
                fix="leave it out: texts that are too long are tried anyway",
            )
    return TextPlan(
        tokenizer=tokenizer.serialized,
        settings=TextSettings(
            inputs={tensor.name.upper(): _PARTS[tensor.name] for tensor in checkpoint.inputs},
            shortest=length.minimum,
            longest=length.maximum,
        ),
        cut_at=cut_at,
        texts=tuple(text for text, fit in zip(tried, fits, strict=True) if fit),
        # What is no text comes last: the last one is tried in a batch too.
        damaged=(*(text for text, fit in zip(tried, fits, strict=True) if not fit), *damaged_texts()),
        answer=answer,
    )


def judge_tokens(plan: TextPlan, trained: TrainedTexts) -> Judgement:
    """Whether the first step makes of every text exactly what training's tokenizer makes, alone and padded together."""
    from deploy.ensemble.models.text import BadText, Encoder

    encoder = Encoder(plan.tokenizer, plan.settings.model_dump(mode="json"))
    cases: list[tuple[str, Sequence[bytes], Sequence[np.ndarray]]] = [
        (text.name, [text.data], wanted) for text, wanted in zip(plan.texts, trained.alone, strict=True)
    ]
    cases.append(("all texts together", [text.data for text in plan.texts], trained.together))
    for name, texts, wanted in cases:
        try:
            found = encoder.encode(texts)
        except BadText as error:
            return _no(f"{name} is refused, and training reads it: {error}")
        for (wire, array), expected in zip(found.items(), wanted, strict=True):
            if array.shape != expected.shape:
                return _no(f"{name}: {wire} is {list(array.shape)}, in training {list(expected.shape)}")
            if (array != expected).any():
                row, place = np.argwhere(array != expected)[0]
                texts_say = f"{array[row, place]}, in training {expected[row, place]}"
                return _no(f"{name}: {wire} has at token {place} {texts_say}")
    reason = f"{len(plan.texts)} texts against training's own tokenizer, alone and together: every token equal"
    return Judgement(verdict=Verdict.PASS, reason=reason)


def _no(reason: str) -> Judgement:
    return Judgement(verdict=Verdict.FAIL, reason=reason)


def _answer(checkpoint: Checkpoint) -> Literal["scores", "embedding"]:
    """What the ensemble would answer with. Raises UsageError where it is neither classes nor one embedding."""
    names = [tensor.name for tensor in checkpoint.inputs]
    if checkpoint.how != "config" or names[0] != TOKENS or not set(names) <= _PARTS.keys():
        raise UsageError(
            f"{PURPOSE} needs a network that reads one text, and {checkpoint.architecture} takes {', '.join(names)}",
            expected="a folder of transformers for texts, with its tokenizer",
            fix=f"leave {PURPOSE} out" + (", or write --ensemble image" if names == [PIXELS] else ""),
        )
    folder = open_folder(checkpoint.network_path)
    if checkpoint.base is not None:
        folder = folder.with_tokenizer_of(checkpoint.path)
    if not has_tokenizer(folder):
        raise UsageError(
            f"{PURPOSE}: no tokenizer lies in {checkpoint.network_path}",
            expected="the tokenizer of training beside the weights",
            fix="save it there: tokenizer.save_pretrained(folder)",
        )
    if folder.read("modules.json") is not None:
        if read_pooling(folder) is None:
            raise UsageError(
                f"{PURPOSE}: {checkpoint.path} is a CrossEncoder, which reads two texts at once",
                expected="a network that reads one text",
                fix=f"leave {PURPOSE} out: the version takes token ids, and keeps its tokenizer",
            )
        prompt = (folder.read("config_sentence_transformers.json") or {}).get("default_prompt_name")
        if prompt:
            raise UsageError(
                f"{PURPOSE}: sentence-transformers puts the prompt {prompt!r} before every text of this model",
                expected="a model without a default prompt",
                fix=f"leave {PURPOSE} out, and let clients put the prompt before their texts",
            )
        return "embedding"
    if not checkpoint.architecture.endswith(_CLASSIFIER):
        raise UsageError(
            f"{PURPOSE} answers with labels and scores or one embedding, and {checkpoint.architecture} has neither",
            expected=f"...{_CLASSIFIER}, or a folder of sentence-transformers (modules.json)",
            fix=f"leave {PURPOSE} out: the version takes token ids, and keeps its tokenizer",
        )
    require_one_class_of_several(PURPOSE, checkpoint.num_classes, folder.config.get("problem_type"))
    return "scores"


def _embedding(spec: Spec) -> int:
    """The index of the pooled output."""
    return next(index for index, output in enumerate(spec.outputs) if output.name == EMBEDDING)
