"""An ensemble judged: its first step against training's own transform, the served whole against the eager network.

Owns the limits and the checks, and what of them lies in the version's evidence. Called by image, text and verify.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from deploy.ensemble.inputs import Kind, NamedInput
from deploy.ensemble.models.image import BadImage, prepare
from deploy.ensemble.models.scores import best
from deploy.ensemble.reference import Answers, TrainedAnswers
from deploy.ensemble.transform import ImageTransform
from deploy.errors import UsageError
from deploy.evidence import Judgement, ServedCheck, Verdict
from deploy.records import Record
from deploy.serve.client import PROTOCOLS, Client, ModelAddress, RequestFailed
from deploy.serve.server import TritonServer
from deploy.validate.baseline import LIMITS

IMAGE, TEXT, LABELS, SCORES, VECTOR = "IMAGE", "TEXT", "LABELS", "SCORES", "EMBEDDING"
_INPUTS: dict[Kind, str] = {"image": IMAGE, "text": TEXT}
_EPSILON = float(np.finfo(np.float32).eps)
# Scaling and normalising are three roundings; each side may fuse or order them as it likes.
_TRANSFORM_EPSILONS = 8.0
_SPREAD = 10.0


class EnsembleQuestion(Record):
    """What a served ensemble is asked and judged by; the arrays, in the order of `names`, are in an `.npz` beside it.

    `allowed` is the largest absolute error of a score, or of a number of an embedding; `labels` what the classes are
    called, `count` how many of them are answered. The last `damaged` inputs must be refused.
    """

    kind: Kind = "image"
    answer: Literal["scores", "embedding"] = "scores"
    names: tuple[str, ...]
    damaged: int
    labels: tuple[str, ...]
    count: int
    allowed: float
    max_batch: int

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the ensemble answers with, by the names on the wire."""
        return (LABELS, SCORES) if self.answer == "scores" else (VECTOR,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question with what is sent and, for what is whole, the float64 reference: softmax scores, or embeddings."""

    question: EnsembleQuestion
    inputs: tuple[bytes, ...]
    exact: np.ndarray

    def save(self, folder: Path) -> None:
        """Write it into a version's evidence, so that the version can be proven again."""
        kind, answer = self.question.kind, self.question.answer
        arrays = {f"{kind}/{n}": np.frombuffer(data, np.uint8) for n, data in enumerate(self.inputs)}
        np.savez_compressed(folder / f"{kind}s.npz", allow_pickle=False, **{answer: self.exact}, **arrays)
        self.question.write(folder / f"{kind}s.json")

    @classmethod
    def load(cls, folder: Path) -> "Asked":
        """What `save` wrote. Raises UsageError if a file is absent or damaged."""
        kind: Kind = "text" if (folder / "texts.json").is_file() else "image"
        question, file = EnsembleQuestion.read(folder / f"{kind}s.json"), folder / f"{kind}s.npz"
        try:
            with np.load(file, allow_pickle=False) as archive:
                inputs = tuple(archive[f"{kind}/{n}"].tobytes() for n in range(len(question.names)))
                return cls(question=question, inputs=inputs, exact=archive[question.answer])
        except (OSError, KeyError, ValueError) as error:
            raise UsageError(
                f"{file} cannot be read: {error}", expected="the file that packaging wrote, unedited"
            ) from error


def judge_transform(images: Sequence[NamedInput], transform: ImageTransform, answers: TrainedAnswers) -> Judgement:
    """Whether the first step makes of every image what training's own transform makes of it.

    Pixels must be equal, normalised values within 8 epsilons of their scale. Raises UsageError for an image of the
    user's that the step refuses.
    """
    worst, name, equal = 0.0, "", 0
    for image, trained in zip(images, answers.inputs, strict=True):
        try:
            found = prepare(image.data, transform.model_dump(mode="json"))[np.newaxis]
        except BadImage as error:
            raise UsageError(f"{image.name}: {error}", expected="images as they will be sent") from error
        if found.shape != trained.shape or found.dtype != trained.dtype:
            wanted = f"{trained.dtype} {list(trained.shape)}"
            text = f"{image.name} becomes {found.dtype} {list(found.shape)}, in training {wanted}"
            return Judgement(verdict=Verdict.FAIL, reason=text)
        gap = float(np.abs(found.astype(np.float64) - trained.astype(np.float64)).max())
        equal += gap == 0.0
        worst, name = max((worst, name), (gap, image.name))
    scale = max(float(np.abs(array.astype(np.float64)).max()) for array in answers.inputs)
    half = transform.dtype == "float16"
    epsilon = float(np.finfo(np.float16).eps) if half else _EPSILON
    allowed = 0.0 if transform.mean is None else _TRANSFORM_EPSILONS * epsilon * scale
    text = f"{len(images)} images against torchvision's own transforms: {equal} equal to the bit"
    if worst > allowed:
        reason = f"{text}; {name} is off by {worst:.3g}, and {allowed:.3g} is allowed"
        return Judgement(verdict=Verdict.FAIL, reason=reason)
    return Judgement(verdict=Verdict.PASS, reason=f"{text}, the others within {worst:.2g}" if worst else text)


def make_question(
    whole: Sequence[NamedInput], damaged: Sequence[NamedInput], answers: Answers, question: EnsembleQuestion
) -> Asked:
    """The question with its budget: ten times the error that eager itself makes in the answers, and 8 epsilons.

    Raises UsageError if the answers hardly differ between the inputs, so that nothing could be told by them, or are
    scores already.
    """
    if question.answer == "scores":
        _require_logits(question.kind, answers.reference)
    final = _softmax if question.answer == "scores" else _as_they_are
    exact = final(answers.reference)
    error = max(float(np.abs(final(run) - exact).max()) for run in answers.eager)
    scale = 1.0 if question.answer == "scores" else float(np.abs(exact).max())
    limits = LIMITS["fp32"]
    allowed = limits.max_multiple * error + limits.floor_epsilons * _EPSILON * scale
    spread = float((exact.max(axis=0) - exact.min(axis=0)).max())
    kind = question.kind
    if not spread > _SPREAD * allowed:
        raise UsageError(
            f"the answers for {len(whole)} {kind}s differ by {spread:.2g} at most; errors of {allowed:.2g} are allowed",
            expected=f"{kind}s that the network tells apart",
            fix="give real ones with --images FOLDER" if kind == "image" else "give real ones with --texts FILE",
        )
    names = tuple(one.name for one in (*whole, *damaged))
    settled = question.model_copy(update={"names": names, "damaged": len(damaged), "allowed": allowed})
    return Asked(question=settled, inputs=tuple(one.data for one in (*whole, *damaged)), exact=exact)


def ask_ensemble(server: TritonServer, address: ModelAddress, asked: Asked) -> tuple[ServedCheck, ...]:
    """The checks of an ensemble that the running `server` serves, over each protocol."""
    checks: list[ServedCheck] = []
    for protocol in PROTOCOLS:
        where = server.grpc_address if protocol == "grpc" else server.http_address
        with Client(protocol, where) as client:
            asking = _Asking(client=client, address=address, asked=asked)
            checks += [asking.alone(), asking.damaged(), *([asking.together()] if asked.question.max_batch > 1 else [])]
    return tuple(checks)


def ask_whole(client: Client, address: ModelAddress, asked: Asked) -> ServedCheck:
    """The first of these checks alone, by a client that is there: each whole input in a request of its own."""
    return _Asking(client=client, address=address, asked=asked).alone()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asking:
    """One ensemble asked over one protocol."""

    client: Client
    address: ModelAddress
    asked: Asked

    @property
    def kind(self) -> Kind:
        """What goes in."""
        return self.asked.question.kind

    def alone(self) -> ServedCheck:
        """Each whole input in a request of its own."""
        whole = range(len(self.asked.exact))
        return self._check(f"one {self.kind} at a time", [[n] for n in whole], self._problems([[n] for n in whole]))

    def together(self) -> ServedCheck:
        """The whole ones in the largest batches; then a batch with a damaged one, which is refused by its place."""
        size, count = self.asked.question.max_batch, len(self.asked.exact)
        batches = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
        mixed = [0, len(self.asked.inputs) - 1]
        problems = [*self._problems(batches), *self._not_refused(mixed, said=f"{self.kind} 2 of 2")]
        return self._check(f"batches, and one with a damaged {self.kind}", [*batches, mixed], iter(problems))

    def damaged(self) -> ServedCheck:
        """Each damaged input is refused by itself, and the whole one after it is answered."""
        question = self.asked.question
        bad = range(len(question.names) - question.damaged, len(question.names))
        problems = [problem for n in bad for problem in (*self._not_refused([n]), *self._problems([[0]]))]
        return self._check(f"damaged {self.kind}s, each before a whole one", [[n] for n in bad], iter(problems))

    def _problems(self, batches: Sequence[Sequence[int]]) -> Iterator[str]:
        for rows in batches:
            try:
                found = self._ask(rows)
            except RequestFailed as error:
                yield f"{self._named(rows)}: {error.found}"
                continue
            for row, *answer in zip(rows, *(found[name] for name in self.asked.question.outputs), strict=True):
                if problem := self._wrong(row, *answer):
                    yield f"{self.asked.question.names[row]}: {problem}"

    def _wrong(self, row: int, *answer: np.ndarray) -> str:
        """What is wrong with one input's answer; empty if nothing is."""
        if self.asked.question.answer == "embedding":
            return self._wrong_embedding(row, *answer)
        encoded, scores = answer
        return self._wrong_scores(row, [label.decode() for label in encoded], scores)

    def _wrong_embedding(self, row: int, found: np.ndarray) -> str:
        exact, allowed = self.asked.exact[row], self.asked.question.allowed
        if found.shape != exact.shape:
            return f"an embedding of {list(found.shape)}, not {list(exact.shape)}"
        gap = np.abs(found.astype(np.float64) - exact)
        if (gap <= allowed).all():  # a NaN is within nothing
            return ""
        return f"number {gap.argmax()} is off by {gap.max():.3g}; {allowed:.3g} is allowed"

    def _wrong_scores(self, row: int, labels: Sequence[str], scores: np.ndarray) -> str:
        question, exact = self.asked.question, self.asked.exact[row]
        if len(labels) != question.count or (np.diff(scores) > 0).any():
            return f"{len(labels)} labels with the scores {scores.tolist()}, not {question.count}, the best first"
        order, _ = best(np.log(np.maximum(exact, 1e-300))[np.newaxis], question.count)
        for place, (label, score) in enumerate(zip(labels, scores, strict=True)):
            # Two classes may share a name, as ImageNet's do.
            meant = [n for n, name in enumerate(question.labels) if name == label]
            gap = min((abs(float(score) - exact[n]) for n in meant), default=np.inf)
            if not gap <= question.allowed:
                return f"{label!r} has the score {score:.6g}, off by {gap:.3g}; {question.allowed:.3g} is allowed"
            wanted = exact[order[0][place]]
            if not abs(float(score) - wanted) <= question.allowed:
                return f"{label!r} stands at place {place + 1}, where the reference has the score {wanted:.6g}"
        return ""

    def _not_refused(self, rows: Sequence[int], *, said: str = "") -> Iterator[str]:
        try:
            self._ask(rows)
        except RequestFailed as error:
            if self.kind not in error.found or said not in error.found:
                yield f"{self._named(rows)} is refused without saying which or why: {error.found}"
        else:
            yield f"{self._named(rows)} is answered, and cannot be used"

    def _ask(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        data = np.array([[self.asked.inputs[row]] for row in rows], dtype=object)
        return self.client.infer(self.address, {_INPUTS[self.kind]: data})

    def _named(self, rows: Sequence[int]) -> str:
        return ", ".join(self.asked.question.names[row] for row in rows)

    def _check(self, name: str, batches: Sequence[Sequence[int]], problems: Iterator[str]) -> ServedCheck:
        found = list(problems)
        rows = sum(map(len, batches))
        reason = found[0] if found else f"{rows} {self.kind}s, each as it should be"
        return ServedCheck(
            name=name,
            protocol=self.client.protocol,
            requests=len(batches),
            rows=rows,
            judgement=Judgement(verdict=Verdict.FAIL if found else Verdict.PASS, reason=reason),
        )


def labels_json(labels: Sequence[str]) -> bytes:
    """The labels as the last step reads them."""
    return json.dumps(list(labels), ensure_ascii=False, indent=0).encode()


def _require_logits(kind: Kind, values: np.ndarray) -> None:
    """Raises UsageError if a network ends with a softmax or a sigmoid of its own: the last step would take another."""
    if values.min() < 0.0 or values.max() > 1.0:
        return
    of_softmax = bool(np.allclose(values.sum(axis=1), 1.0, atol=1e-3))
    how = "each row adds up to 1, as behind a softmax" if of_softmax else "as behind a sigmoid"
    raise UsageError(
        f"--ensemble {kind} makes scores of the network's outputs, and they are scores already: all of them lie in "
        f"0..1 for {len(values)} {kind}s, {how}",
        expected="a classifier's raw outputs (logits)",
        fix="leave the last softmax out of the network's forward"
        if of_softmax
        else f"leave --ensemble {kind} out: the version gives the outputs as they are",
    )


def _softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    scores: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return scores


def _as_they_are(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64)
