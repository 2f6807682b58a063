"""Small real ensembles for tests: two steps and the whole, made without torch, which no server could load.

Owns no assertion.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from deploy.ensemble.configs import EnsembleStep, StepPlan, Tensor, ensemble_config
from deploy.repository.manifest import StepVersion
from deploy.repository.publish import publish
from deploy.repository.stage import open_stage
from tests.repository.samples import Sample, classifier, put

STEPS = ("pets", "ranks")
WHOLE = "pets_image"
IMAGES = (b"first image", b"second", b"damaged")


def put_ensemble(repository: Path, *, max_batch: int = 8) -> None:
    """A version of each step, and one of the ensemble that runs just these."""
    published = [put(repository, Sample(name=name, spec=classifier(max_batch=max_batch))) for name in STEPS]
    tensor = Tensor(wire="INPUT__0", dtype="float32", dims=(3,))
    steps = [
        EnsembleStep(
            model=one.version.name,
            version=one.version.number,
            inputs={"INPUT__0": "INPUT__0" if place == 0 else "between"},
            outputs={"OUTPUT__0": "between" if place == 0 else "OUTPUT__0"},
        )
        for place, one in enumerate(published)
    ]
    with open_stage(repository, WHOLE) as stage:
        output = replace(tensor, wire="OUTPUT__0")
        plan = StepPlan(
            name=WHOLE, version=stage.version.number, inputs=(tensor,), outputs=(output,), max_batch=max_batch
        )
        stage.add_config(ensemble_config(plan, steps))
        evidence = stage.version.evidence
        evidence.mkdir(exist_ok=True)
        images = {f"image/{n}": np.frombuffer(image, np.uint8) for n, image in enumerate(IMAGES)}
        np.savez(evidence / "images.npz", allow_pickle=False, scores=np.ones((2, 3)), **images)
        manifest = Sample(name=WHOLE, classes=None).manifest()
        made_of = tuple(
            StepVersion(model=one.version.name, version=one.version.number, digest=one.digest) for one in published
        )
        publish(stage, manifest.model_copy(update={"format": "ensemble", "steps": made_of}))
