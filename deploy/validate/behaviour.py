"""Whose model it is: eager against what the training side computed, and labels against classes.

Owns the words `confirmed`, `refuted` and `unconfirmed`. Weights do not say which epsilon, activation or
preprocessing training used; only expected outputs do. Called by run and package.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from deploy.checkpoint.model import Checkpoint
from deploy.errors import UsageError
from deploy.evidence import BehaviourEvidence
from deploy.spec import Spec
from deploy.validate.samples import Samples

Call = Callable[[list[np.ndarray]], Sequence[np.ndarray]]

_ROWS = 64
# Training may have run on a GPU: TF32 keeps 10 bits of mantissa (5e-4 per product), mixed precision less.
_TOLERANCE = {"float16": 2e-2, "float32": 2e-3, "float64": 2e-3}


def check_behaviour(checkpoint: Checkpoint, samples: Samples | None, spec: Spec, call: Call) -> BehaviourEvidence:
    """What eager (`call`) does on at most 64 real rows, spread over the file, against `expected/` and `labels`."""
    unconfirmed = BehaviourEvidence(status="unconfirmed", statement=f"{checkpoint.origin}, behaviour unconfirmed")
    if samples is None or not (samples.expected or samples.labels is not None):
        return unconfirmed
    rows = np.unique(np.linspace(0, samples.rows - 1, min(_ROWS, samples.rows)).round().astype(int))
    outputs = _run(samples, spec, rows, call)
    accuracy = _accuracy(samples, spec, rows, outputs)
    labelled = {"labelled_rows": 0 if accuracy is None else len(rows), "accuracy": accuracy}
    expected = {index: array[rows] for index, array in samples.expected_outputs(spec).items()}
    if not expected:
        return unconfirmed.model_copy(update=labelled)
    return _confirm(checkpoint, spec, outputs, expected).model_copy(update={"rows": len(rows), **labelled})


def read_labels(path: Path) -> tuple[str, ...]:
    """The class names in a text file, one per line, in order. Raises UsageError if it is absent or has blank lines."""
    try:
        # Not at what else Python's splitlines breaks at; a mark of the byte order is no part of the first name.
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except FileNotFoundError as error:
        raise UsageError(f"there is no labels file {path}", expected="a text file, one class name per line") from error
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise UsageError(f"{path} is no text file", expected="UTF-8 text, one class name per line") from error
    blank = [number for number, line in enumerate(lines, 1) if not line.strip()]
    if blank:
        found = f"line {blank[0]} of {path} is blank" if len(lines) > 1 else f"{path} is empty"
        raise UsageError(found, expected="one class name per line, without gaps")
    return tuple(line.strip() for line in lines)


def check_labels(labels: Sequence[str] | None, checkpoint: Checkpoint) -> tuple[str, ...] | None:
    """The class names to publish: those given, else the checkpoint's own, else None.

    Raises UsageError if they are not as many as the outputs, or differ from the checkpoint's own in name or order.
    """
    if labels is None:
        return checkpoint.classes
    if checkpoint.num_classes is not None and len(labels) != checkpoint.num_classes:
        raise UsageError(
            f"there are {len(labels)} labels for {checkpoint.num_classes} outputs",
            expected="one label per output, in the order of training",
        )
    own = checkpoint.classes
    if own is not None and tuple(labels) != own:
        raise UsageError(
            f"the labels are not the checkpoint's own classes: {_label_difference(labels, own)}",
            expected=f"{', '.join(own[:4])}{', ...' if len(own) > 4 else ''}",
            fix="leave --labels out to use the checkpoint's own, or put the file into that order",
        )
    return tuple(labels)


def _label_difference(labels: Sequence[str], own: Sequence[str]) -> str:
    for shift in (1, -1):
        if list(labels) == [own[(index + shift) % len(own)] for index in range(len(own))]:
            return f"their order is shifted by one (label 0 is {labels[0]!r}, the checkpoint's is {own[0]!r})"
    if sorted(labels) == sorted(own):
        index = next(index for index, label in enumerate(labels) if label != own[index])
        return f"same names, another order (label {index} is {labels[index]!r}, the checkpoint's is {own[index]!r})"
    index = next((index for index, (left, right) in enumerate(zip(labels, own, strict=False)) if left != right), 0)
    return f"label {index} is {labels[index]!r}, the checkpoint's is {own[index]!r}"


def _run(samples: Samples, spec: Spec, rows: np.ndarray, call: Call) -> list[np.ndarray]:
    """Eager's outputs for these rows, rows first, in batches within the bounds."""
    calls = []
    for start in range(0, len(rows), spec.max_batch):
        chosen = rows[start : start + spec.max_batch]
        calls.append(call([np.ascontiguousarray(array[chosen]) for array in samples.inputs]))
    return [np.concatenate([np.atleast_1d(array) for array in arrays]) for arrays in zip(*calls, strict=True)]


def _accuracy(samples: Samples, spec: Spec, rows: np.ndarray, outputs: Sequence[np.ndarray]) -> float | None:
    """The share of rows whose first decision is the label; None where there are no labels or no decision."""
    deciding = [index for index, output in enumerate(spec.outputs) if output.decision_axis is not None]
    if samples.labels is None or not deciding or outputs[deciding[0]].ndim != 2:
        return None
    every, logits = samples.labels, outputs[deciding[0]]
    if every.min() < 0 or every.max() >= logits.shape[1]:
        raise UsageError(
            f"{samples.path}: 'labels' holds {every.min()}..{every.max()}",
            expected=f"class numbers in 0..{logits.shape[1] - 1}",
        )
    return float((logits.argmax(axis=1) == every[rows]).mean())


def _confirm(
    checkpoint: Checkpoint, spec: Spec, outputs: Sequence[np.ndarray], expected: Mapping[int, np.ndarray]
) -> BehaviourEvidence:
    """Confirmed if every output is within the tolerance of what training computed, relative in L2."""
    errors = {index: relative_l2(outputs[index], array) for index, array in expected.items()}
    index = max(errors, key=lambda key: errors[key] / _TOLERANCE.get(expected[key].dtype.name, 2e-3))
    error, limit = errors[index], _TOLERANCE.get(expected[index].dtype.name, 2e-3)
    if error <= limit:
        statement = f"{checkpoint.origin}, behaviour confirmed by the samples' expected outputs ({error:.1e} relative)"
        return BehaviourEvidence(status="confirmed", statement=statement, relative_error=error, relative_limit=limit)
    hint = _mismatch_hint(outputs[index], expected[index], limit)
    statement = (
        f"not the architecture that was trained: eager {checkpoint.architecture} is {error:.2g} (relative L2) from the "
        f"samples' expected output {spec.outputs[index].name!r}, {limit:g} passes. {hint}"
    )
    return BehaviourEvidence(status="refuted", statement=statement, relative_error=error, relative_limit=limit)


def relative_l2(found: np.ndarray, expected: np.ndarray) -> float:
    """The L2 norm of the difference over that of `expected`; infinite where NaN, or where `expected` is all zero."""
    wanted = expected.astype(np.float64)
    gap, norm = float(np.linalg.norm(found.astype(np.float64) - wanted)), float(np.linalg.norm(wanted))
    if gap == 0.0:
        return 0.0
    return gap / norm if norm > 0.0 and np.isfinite(gap) else float("inf")


def _mismatch_hint(found: np.ndarray, expected: np.ndarray, limit: float) -> str:
    logits = found.astype(np.float64)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    if relative_l2(powers / powers.sum(axis=-1, keepdims=True), expected) <= limit:
        return "They are its softmax: save the model's own outputs, not probabilities."
    for shift in (1, -1):
        if relative_l2(np.roll(logits, shift, axis=-1), expected) <= limit:
            return "They are its outputs shifted by one class."
    return "Check --arch, the activation, the normalisation's epsilon and that training evaluated in eval mode."
