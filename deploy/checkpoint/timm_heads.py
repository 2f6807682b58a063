"""A timm network whose last layer training replaced by a head of its own: which networks have the body.

Owns the comparison of what is left without the head; what the head is, own_head says. Called by timm_models, where no
network fits as it is.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploy.checkpoint.architecture import Shapes
from deploy.checkpoint.head_layers import parse_layers
from deploy.checkpoint.own_head import OwnHead, own_head
from deploy.checkpoint.timm_entries import TIMM, TimmEntry, digest_names, digest_shapes

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A network whose names and shapes a file has but for those at `path`, its last layer; `head` are the others."""

    entry: TimmEntry
    path: str
    head: Shapes


def bodies(entries: Iterable[TimmEntry], shapes: Shapes) -> Iterator[Body]:
    """Each network that these tensors are but for its one last layer, where they have something else."""
    digests: dict[str, str] = {}
    for entry in entries:
        path = next(iter(entry.head), "").rpartition(".")[0]
        if not path or not all(name.rpartition(".")[0] == path for name in entry.head):
            continue
        head = {name: shape for name, shape in shapes.items() if name.startswith(f"{path}.")}
        if path not in digests:
            digests[path] = digest_names(shapes.keys() - head.keys())
        if head and digests[path] == entry.headless:
            flexible = {*head, *entry.stem, *([entry.position.tensor] if entry.position else [])}
            if digest_shapes({name: shapes[name] for name in shapes if name not in flexible}) == entry.shapes:
                yield Body(entry=entry, path=path, head=head)


def with_own_head(
    entries: Iterable[TimmEntry], shapes: Shapes, *, said: str | None, modules: Sequence[str],
    build: "Callable[[TimmEntry], nn.Module | None]",
) -> Iterator[tuple[TimmEntry, OwnHead]]:  # fmt: skip
    """Each of the `bodies` whose last layer is linear, with the head that stands in its place.

    `said` is what `--head` says, `modules` are the names of the saved modules in their order; `build` gives the network
    as timm makes it. Raises UsageError where weights do not tell the head, or tell another than was said.
    """
    from torch.nn import Linear

    from deploy.checkpoint.build import make_head

    layers = parse_layers(said) if said is not None else None
    for body in bodies(entries, shapes):
        module = build(body.entry)
        last = module.get_submodule(body.path) if module is not None else None
        if isinstance(last, Linear):
            name, width = TIMM + body.entry.name, last.in_features
            own = own_head(name, body.path, width, body.head, modules=modules, said=layers)
            make_head(own.option)  # refuses arguments that torch does not take, before any work
            yield body.entry, own
