"""One model name, one contract: format, tensors and label order stay what its clients know.

Owns the comparison and which version binds. Called by publish, by promotion, and by package before any work.

The version that binds is the promoted one, since that is what clients meet; the lowest where none is promoted. A first
version is promoted when it is published, so its contract holds until one that was published with `--new-contract`
is promoted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Protocol

from deploy.convert.model import PublishedFormat
from deploy.errors import UsageError
from deploy.repository.find import read_manifest
from deploy.repository.layout import CONFIG_FILE, Version, promoted_version, version_numbers
from deploy.repository.manifest import Manifest
from deploy.repository.protobuf import parse_config
from deploy.spec import Dim, Spec, TensorSpec, wire_input, wire_output


class Contract(Protocol):
    """What a name is bound to. A `Manifest` is one."""

    @property
    def format(self) -> PublishedFormat:
        """The artifact's format."""

    @property
    def spec(self) -> Spec:
        """Names, dtypes and shapes."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The labels in the order of the output, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractChange:
    """One thing that differs, and what clients will notice."""

    what: str
    before: str
    after: str
    notice: str

    def __str__(self) -> str:
        return f"{self.what}: {self.before} becomes {self.after}; {self.notice}"


def binding_manifest(repository: Path, name: str) -> Manifest | None:
    """The manifest of the version that binds `name`; None if the model has no folder yet.

    Raises UsageError if the folder holds no version that deployctl published, or a config that cannot be parsed: it
    does not say which version clients meet.
    """
    folder = repository / name
    if not folder.exists():
        return None
    _require_readable(folder / CONFIG_FILE)
    promoted, numbers = promoted_version(folder), version_numbers(folder)
    known = [number for number in (promoted, *numbers) if number in numbers]
    for number in known:
        version = Version(repository=repository, name=name, number=number)
        if version.manifest.exists():
            return read_manifest(version)
    raise UsageError(
        f"{folder} exists and holds no version that deployctl published",
        expected="a model with a manifest, or no folder of that name",
        fix="choose another name with --name, or move that folder away",
    )


def _require_readable(config: Path) -> None:
    try:
        parse_config(config.read_text())
    except FileNotFoundError:
        return
    except (IsADirectoryError, UnicodeDecodeError, UsageError) as error:
        folder = config.parent
        raise UsageError(
            f"{config} cannot be parsed, so it does not say which version is promoted and binds the name",
            expected="the config of the promoted version",
            fix=f"`deployctl promote {folder.parent} {folder.name}:N` replaces it by version N's, and keeps it aside",
        ) from error


def contract_changes(before: Contract, after: Contract) -> tuple[ContractChange, ...]:
    """What differs from `before` to `after`; wider bounds of a dynamic dim and added labels are no change."""
    return tuple(_changes(before, after))


def check_contract(repository: Path, name: str, after: Contract, *, accept: bool) -> tuple[ContractChange, ...]:
    """The changes that publishing `after` under `name` makes. Raises UsageError if there are any, unless `accept`."""
    before = binding_manifest(repository, name)
    changes = contract_changes(before, after) if before is not None else ()
    if changes and not accept:
        assert before is not None
        listed = "\n".join(f"    {change}" for change in changes)
        raise UsageError(
            f"{name} is bound by its version {before.version}, and this one would change the contract:\n{listed}",
            expected="the same format, tensor names, dtypes, shapes and label order",
            fix="choose another name with --name, or accept what clients will notice with --new-contract",
        )
    return changes


def _changes(before: Contract, after: Contract) -> Iterator[ContractChange]:
    if before.format != after.format:
        yield ContractChange(
            what="format",
            before=before.format,
            after=after.format,
            notice="the same requests work, and answers and latency may differ slightly",
        )
    sides = (
        ("input", wire_input, before.spec.inputs, after.spec.inputs),
        ("output", wire_output, before.spec.outputs, after.spec.outputs),
    )
    for side, wire, old_tensors, new_tensors in sides:
        for index, (old, new) in enumerate(zip_longest(old_tensors, new_tensors)):
            if old is None or new is None:
                yield _counted(f"{side} {wire(index)}", old, new)
            else:
                yield from _tensor_changes(f"{side} {wire(index)}", (old, before.spec), (new, after.spec))
    yield from _label_changes(before.classes, after.classes)


def _counted(what: str, old: TensorSpec | None, new: TensorSpec | None) -> ContractChange:
    gone = new is None
    return ContractChange(
        what=what,
        before=old.name if old else "absent",
        after=new.name if new else "absent",
        notice="clients that name it are refused" if gone else "clients that do not know it may be refused",
    )


def _tensor_changes(
    what: str, before: tuple[TensorSpec, Spec], after: tuple[TensorSpec, Spec]
) -> Iterator[ContractChange]:
    (old, old_spec), (new, new_spec) = before, after
    if old.name != new.name:
        notice = "the position on the wire has another meaning"
        yield ContractChange(what=f"{what} name", before=old.name, after=new.name, notice=notice)
    if old.dtype != new.dtype:
        notice = "requests of the old dtype are refused, answers have another"
        yield ContractChange(what=f"{what} dtype", before=old.dtype, after=new.dtype, notice=notice)
    sizes = [_bounds(size, old_spec) for size in old.shape]
    new_sizes = [_bounds(size, new_spec) for size in new.shape]
    if len(sizes) != len(new_sizes) or not all(map(_covers, new_sizes, sizes)):
        yield ContractChange(
            what=f"{what} shape",
            before=_shown(sizes),
            after=_shown(new_sizes),
            notice="requests of the old shape are refused, or answers have another",
        )


def _label_changes(old: tuple[str, ...] | None, new: tuple[str, ...] | None) -> Iterator[ContractChange]:
    if old is None or old == new:
        return
    pairs = zip_longest(old, new or (), fillvalue="nothing")
    place = next(index for index, (left, right) in enumerate(pairs) if left != right)
    yield ContractChange(
        what=f"label {place}",
        before=old[place] if place < len(old) else "nothing",
        after=new[place] if new and place < len(new) else "nothing",
        notice="the same class index means another class",
    )


def _bounds(size: int | str, spec: Spec) -> int | Dim:
    return size if isinstance(size, int) else next(dim for dim in spec.dims if dim.name == size)


def _covers(new: int | Dim, old: int | Dim) -> bool:
    """Whether every size that was taken before is taken now, and is dynamic if it was."""
    if isinstance(new, Dim) and isinstance(old, Dim):
        return new.minimum <= old.minimum and new.maximum >= old.maximum
    return new == old


def _shown(sizes: list[int | Dim]) -> str:
    words = [f"{size.minimum}..{size.maximum}" if isinstance(size, Dim) else str(size) for size in sizes]
    return f"[{', '.join(words)}]"
