"""Transfer learning as people do it: a torchvision network, a new head, some layers trained, checkpoints saved.

Owns the training and what it leaves on disk. Knows nothing of packaging or serving.
Run it by hand or through `make demo`: `python examples/finetune.py --out .demo/training`.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits import CLASSES, MEAN, SIZE, STD, Digits, load_split, preprocess
from safetensors.torch import save_file
from torch import Tensor, nn

from deploy.checkpoint.vision import import_torchvision

SAMPLES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the result. `layers` are the name prefixes that are trained besides the new head."""

    arch: str
    layers: tuple[str, ...]
    pretrained: bool
    epochs: int
    batch: int
    head_rate: float
    body_rate: float
    seed: int


def main() -> int:
    """Train, save, and report; 1 where the held-out accuracy misses `--min-accuracy`."""
    arguments = _arguments()
    recipe = Recipe(
        arch=arguments.arch,
        layers=tuple(arguments.train.split(",")) if arguments.train else (),
        pretrained=arguments.pretrained,
        epochs=arguments.epochs,
        batch=arguments.batch,
        head_rate=arguments.head_rate,
        body_rate=arguments.body_rate,
        seed=arguments.seed,
    )
    torch.manual_seed(recipe.seed)
    training, held_out = load_split(recipe.seed)
    model, head = build(recipe)
    optimizer = make_optimizer(model, head, recipe)
    accuracy = fit(model, optimizer, recipe, training, held_out)
    save(arguments.out, model, optimizer, recipe, held_out)
    print(f"held-out accuracy: {accuracy:.1%} on {len(held_out.labels)} images (at least {arguments.min_accuracy:.0%})")
    return 0 if accuracy >= arguments.min_accuracy else 1


def build(recipe: Recipe) -> tuple[nn.Module, str]:
    """The network with a new head for ten classes, and the name of that head."""
    model = _backbone(recipe)
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise SystemExit(f"{recipe.arch} has no linear layer to replace by a new head")
    name, old = linear[-1]
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.Linear(old.in_features, len(CLASSES)))
    return model, name


def make_optimizer(model: nn.Module, head: str, recipe: Recipe) -> torch.optim.Optimizer:
    """An optimizer with one learning rate for the head and a lower one for the chosen layers; the rest is frozen.

    Normalisation layers of frozen parts keep gathering statistics: a network that has never seen digits would
    otherwise normalise them by numbers that belong to other images.
    """
    names = [name for name, _ in model.named_parameters()]
    for layer in recipe.layers:
        if not any(_below(name, layer) for name in names):
            known = ", ".join(name for name, _ in model.named_children())
            raise SystemExit(f"--train: {recipe.arch} has no layer {layer!r}; it has {known}")
    head_part, body_part = [], []
    for name, parameter in model.named_parameters():
        if _below(name, head):
            head_part.append(parameter)
        elif any(_below(name, layer) for layer in recipe.layers):
            body_part.append(parameter)
        else:
            parameter.requires_grad_(False)
    groups = [{"params": head_part, "lr": recipe.head_rate}]
    if body_part:
        groups.append({"params": body_part, "lr": recipe.body_rate})
    trained = sum(parameter.numel() for parameter in (*head_part, *body_part))
    print(f"{recipe.arch}: {trained:,} of {sum(p.numel() for p in model.parameters()):,} parameters are trained")
    return torch.optim.AdamW(groups)


def fit(
    model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, training: Digits, held_out: Digits
) -> float:
    """The held-out accuracy after `recipe.epochs` passes over the training images, printed after each."""
    images, labels = torch.from_numpy(preprocess(training.images)), torch.from_numpy(training.labels)
    accuracy = 0.0
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        for rows in torch.randperm(len(images)).split(recipe.batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
        predicted = logits(model, preprocess(held_out.images)).argmax(axis=1)
        accuracy = float((predicted == held_out.labels).mean())
        print(f"epoch {epoch}/{recipe.epochs}: held-out accuracy {accuracy:.1%}", flush=True)
    return accuracy


def logits(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """What the trained network answers in evaluation mode: float32 [n, 10]."""
    model.eval()
    with torch.inference_mode():
        outputs: Tensor = model(torch.from_numpy(images))
    return outputs.numpy()


def save(out: Path, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, held_out: Digits) -> None:
    """Write the three checkpoints that people really save, and beside them samples with expected outputs and labels."""
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"digits_{recipe.arch}"
    weights = model.state_dict()
    torch.save(weights, stem.with_suffix(".pt"))
    torch.save(
        {
            "model": weights,
            "optimizer": optimizer.state_dict(),
            "epoch": recipe.epochs,
            "classes": list(CLASSES),
            "preprocessing": PREPROCESSING,
        },
        out / f"{stem.name}_training.pt",
    )
    metadata = {"format": "pt", "classes": json.dumps(CLASSES), "preprocessing": json.dumps(PREPROCESSING)}
    save_file(weights, stem.with_suffix(".safetensors"), metadata=metadata)
    save_samples(out / "samples.npz", model, held_out.head(SAMPLES))
    (out / "labels.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for path in sorted(out.iterdir()):
        print(f"  {path} ({path.stat().st_size:,} bytes)")


def save_samples(path: Path, model: nn.Module, samples: Digits, *, write: bool = True) -> None:
    """Held-out images with what the network says of them; with `write=False` only its part in a sharded model's run."""
    images = preprocess(samples.images)
    arrays = {"input": images, "expected/output": logits(model, images), "labels": samples.labels}
    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, allow_pickle=False, **arrays)


PREPROCESSING: dict[str, Any] = {
    "resize": SIZE,
    "crop": SIZE,
    "mean": list(MEAN),
    "std": list(STD),
    "layout": "NCHW",
    "value_range": [0.0, 1.0],
    "interpolation": "bilinear",
}


def _backbone(recipe: Recipe) -> nn.Module:
    """The network with pre-trained weights where they were asked for and can be had, else with seeded ones."""
    models = import_torchvision().models
    if recipe.arch not in models.list_models(module=models):
        raise SystemExit(f"--arch: torchvision has no classification network {recipe.arch!r}")
    if recipe.pretrained:
        try:
            pretrained: nn.Module = models.get_model(recipe.arch, weights="DEFAULT")
        except OSError as error:
            print(f"no pre-trained weights ({error}): going on with weights seeded by {recipe.seed}")
        else:
            return pretrained
    seeded: nn.Module = models.get_model(recipe.arch, weights=None)
    return seeded


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fine-tune a torchvision network on scikit-learn's digits.")
    parser.add_argument("--out", type=Path, default=Path(".demo/training"), help="the folder to write into")
    parser.add_argument("--arch", default="resnet18", help="a classification builder of torchvision")
    parser.add_argument("--train", default="layer4", help="layers to train besides the new head; '' for the head alone")
    parser.add_argument("--pretrained", action="store_true", help="start from ImageNet weights where they can be had")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--head-rate", type=float, default=3e-3, help="learning rate of the new head")
    parser.add_argument("--body-rate", type=float, default=1e-3, help="learning rate of the trained layers")
    parser.add_argument("--min-accuracy", type=float, default=0.9, help="end with 1 below this share")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
