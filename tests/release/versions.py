"""Versions of the linear classifier with the samples they were proven with, real rows among them, without torch."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from deploy.repository.layout import Version
from deploy.repository.publish import PublishOptions, publish
from deploy.repository.stage import open_stage
from deploy.validate.baseline import Baseline, Question, make_baseline
from deploy.validate.cases import make_cases
from deploy.validate.families import make_pools
from deploy.validate.samples import load_samples
from deploy.validate.store import save_baseline
from tests.repository.samples import PETS, SPEC, Sample
from tests.serve.tiny import Linear, images


def save_samples(path: Path, *, rows: int = 40, seed: int = 3, teacher: Linear | None = None) -> np.ndarray:
    """An `.npz` of real rows, labelled by what `teacher` decides where there is one; gives the images."""
    pixels = images(rows, seed)
    labels = {"labels": teacher.outputs(pixels).argmax(1)} if teacher else {}
    np.savez(path, allow_pickle=False, image=pixels, **labels)
    return pixels


def put_linear(
    repository: Path,
    linear: Linear,
    *,
    samples: Path | None = None,
    sample: Sample = PETS,
    artifact: bytes | None = None,
    new_contract: bool = False,
) -> Version:
    """Publish a classifier as the next version, with evidence that holds its rows and budgets."""
    made = replace(sample, weights=artifact or linear.onnx(sample.spec))
    with open_stage(repository, made.name) as stage:
        made.populate(stage)
        if made.spec == SPEC:
            save_baseline(baseline(linear, samples), stage.version.evidence)
        return publish(stage, made.manifest(), PublishOptions(new_contract=new_contract)).version


def baseline(linear: Linear, samples: Path | None) -> Baseline:
    """What packaging would store: float64 as the reference, float32 as eager."""
    pools = make_pools(SPEC, load_samples(samples, SPEC.inputs) if samples else None, 0)
    question = Question(spec=SPEC, pools=pools, cases=make_cases(SPEC, pools), seed=0)
    pixels = {pool.family: pool.inputs[0] for pool in pools}
    reference = {family: [linear.outputs(rows.astype(np.float64))] for family, rows in pixels.items()}
    eager = [(case, [linear.outputs(pixels[case.family][list(case.rows)])]) for case in question.cases]
    return make_baseline(question, reference, eager, mixed=())
