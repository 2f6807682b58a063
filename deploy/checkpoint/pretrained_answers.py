"""What a transformers network gives: the names of its classes, what its scores mean, on which axis it decides.

Owns the reading of config.json for that. Loads nothing. Called by pretrained.
"""

from collections.abc import Mapping
from typing import Any

from deploy.checkpoint.finders import FINDERS, found_by
from deploy.checkpoint.pretrained_folder import EMBEDDING, PretrainedFolder
from deploy.checkpoint.sentence_folder import score_activation
from deploy.errors import UsageError

# The ending of classes that answer with scores of each class at each place of a map.
SEGMENTATION = "ForSemanticSegmentation"


def class_names(config: Mapping[str, Any], architecture: str) -> tuple[tuple[str, ...] | None, int | None]:
    """The names of the classes in the order of the scores, and their number; None where there are none."""
    if "Classification" not in architecture and not architecture.endswith((SEGMENTATION, *FINDERS)):
        return None, None
    named = config.get("id2label")
    if not isinstance(named, Mapping):
        return None, config.get("num_labels", 2)
    names = {int(index): str(name) for index, name in named.items()}
    if sorted(names) != list(range(len(names))):
        raise UsageError(
            f"id2label of config.json has the numbers {sorted(names)}", expected="0, 1, 2 ... without a gap"
        )
    ordered = tuple(names[index] for index in range(len(names)))
    # What transformers calls classes that nobody named; one class is a number to be predicted.
    unnamed = len(ordered) == 1 or ordered == tuple(f"LABEL_{index}" for index in range(len(ordered)))
    return None if unnamed else ordered, len(ordered)


def answer_notes(folder: PretrainedFolder, classes: int | None) -> list[str]:
    """What a client makes of the scores, where that is something else than taking the largest."""
    activation = score_activation(folder, classes=classes)
    if activation:
        return [f"a CrossEncoder puts its scores through {activation}: the version answers with those before it"]
    if str(folder.config["architectures"][0]).endswith(SEGMENTATION):
        return [
            "a class per pixel of the network's own map, which a client resizes to the image, as the processor does"
        ]
    said = {
        "multi_label_classification": "several labels may be right at once: a client puts each score through a sigmoid",
        "regression": "regression: the scores are the numbers themselves",
    }
    problem = folder.config.get("problem_type") if classes is not None else None
    return [said[problem]] if problem in said else []


def decisions(architecture: str) -> dict[str, int | None]:
    """The decision axis of the outputs whose shape would say another: an embedding decides nothing."""
    vocabulary = {"logits": 2} if architecture.endswith("ForMaskedLM") else {}
    pixels = {"logits": 1} if architecture.endswith(SEGMENTATION) else {}
    found = {name: None if place else 2 for place, name in enumerate(found_by(architecture))}
    embeddings = dict.fromkeys((EMBEDDING, "pooler_output", "text_embeds", "image_embeds"))
    return {**embeddings, **vocabulary, **pixels, **found}
