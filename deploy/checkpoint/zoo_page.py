"""The page docs/architectures.md, written from the index.

Owns its words. Called by zoo_index and by the test that keeps the page current.
"""

from collections import defaultdict

from deploy.checkpoint.architecture import Architecture, Kind, Zoo
from deploy.checkpoint.vision import minor_release

_TITLES: dict[Kind, str] = {
    "classification": "Classification",
    "segmentation": "Segmentation",
    "video": "Video classification",
    "flow": "Optical flow",
    "detection": "Detection",
    "two-stage detection": "Two-stage detection: identified, not packaged",
}


def architectures_page(zoo: Zoo) -> str:
    """docs/architectures.md: each architecture, whether its weights identify it, and what is read from them."""
    groups: defaultdict[object, list[Architecture]] = defaultdict(list)
    for entry in zoo.values():
        groups[frozenset(entry.shapes.items())].append(entry)
    alone = 0
    tables = []
    for kind, title in _TITLES.items():
        rows = []
        for entry in (entry for entry in zoo.values() if entry.kind == kind):
            identified = _identified(entry, groups[frozenset(entry.shapes.items())])
            alone += identified == "yes"
            rows.append(_row(entry, identified))
        tables.append("\n".join((f"## {title}", "", _HEAD, *rows)))
    return _PAGE.format(release=minor_release(), count=len(zoo), alone=alone, tables="\n\n".join(tables))


def _identified(entry: Architecture, group: list[Architecture]) -> str:
    """Whether weights alone lead to this architecture, and if not, what they lead to."""
    if entry.second_to and any(other.name == entry.second_to for other in group):
        differs = f": {entry.about}" if entry.about else ", which computes the same"
        return f"no: taken for {entry.second_to}{differs}"
    rivals = [other.name for other in group if other.name != entry.name and not other.second_to]
    return f"no: `--arch` chooses between it and {', '.join(rivals)}" if rivals else "yes"


def _row(entry: Architecture, identified: str) -> str:
    size = " x ".join(map(str, entry.size)) if entry.size else "asked"
    read = ["classes"] * bool(entry.head) + ["channels"] * bool(entry.stem) + ["image size"] * bool(entry.position)
    return f"| {entry.name} | {identified} | {size} | {', '.join(read) or '-'} |"


_HEAD = "| architecture | identified | input size | read from the tensors |\n| --- | --- | --- | --- |"

_PAGE = """# Architectures that are identified from weights

Generated from the index for torchvision {release} by `python -m deploy.checkpoint.zoo_index`; a test keeps it current.

A checkpoint's tensor names and shapes are compared with every torchvision builder. {alone} of the
{count} architectures below have names and shapes of their own and are identified from the weights alone. The number of
classes is read from the head and the number of input channels from the first convolution, so both may differ from the
pre-trained model's; no builder takes the channels as an argument, so its first convolution is changed after building.
An identified architecture is still inferred: epsilons, activations and preprocessing leave no trace in weights.

Where weights fit several architectures:

- `googlenet` and `inception_v3` built from pre-trained weights rescale their input inside `forward`
  (`transform_input=True`), which a fine-tune inherits; built with `weights=None` they do not. `retinanet_resnet50_fpn`
  built from COCO_V1 weights has batch normalisation with an epsilon of 0, else of 1e-5. Nothing in the weights tells
  them apart: `--arch` says which one was trained. A RetinaNet whose batches were counted (`num_batches_tracked`) is the
  latter, though: pre-trained weights freeze what would count them.
- The `quantized_` builders, in float (before `convert`), share every name and shape with the plain one, which is taken.
  All but one compute the same. `quantized_mobilenet_v2` does not, and `inspect` says so; `--arch` takes it.
  Weights that were converted to int8 are refused: package the float ones that they were made from.
- `fcn_` and `deeplabv3_` networks with an auxiliary classifier (`aux_loss=True`) give two outputs, `out` and `aux`.
  Where its tensors are there and have as many classes, `+aux_loss` is taken; `--arch` without that suffix leaves `aux`
  out.

The auxiliary heads of `googlenet` and `inception_v3` serve training only and are left out, whether the checkpoint has
them or not.

A classifier whose head was replaced, as in `fc = nn.Sequential(Dropout, Linear)`, is told by its other weights, and the
layers of the head by their own: linear layers, norms, and nothing unknown between them. What has no weights leaves no
trace: before the first layer it is taken for a dropout, which `inspect` says; between layers or behind them it is asked
for, as `--head "Dropout, Linear, ReLU, Linear"`, every layer in its order and each as torch.nn calls it, with arguments
where training gave any: `LeakyReLU(0.2)`. Sizes are read from the weights. timm's networks are told in the same way
where their last layer is what was replaced. A head of other code needs `--factory package.module:function`, and so does
a network whose body was changed.

Input size: from the positional embedding where there is one, else what the builder's default pre-trained weights were
made for (crop, or the side that images are resized to; for video the frames of a clip come first; for optical flow the
smallest that the network takes); `--input-shape` overrides the latter. `--arch` takes a name of the first column, with
or without `torchvision/`. A detector gives every box and its scores before non-maximum suppression
([detection.md](detection.md)).

{tables}
"""
