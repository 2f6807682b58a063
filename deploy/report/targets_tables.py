"""The targets as tables: every release in one row, and one target with how each fact is known.

Owns which columns and in what words. Called by the command `targets`; docs/targets.md holds the same table.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deploy.releases import Fact, Release, read_releases
from deploy.report.tables import table_of, title
from deploy.targets import Target

if TYPE_CHECKING:
    from rich.console import RenderableType

HEADINGS = ("Triton", "server", "ORT", "opset", "IR", "AOTI", "torch", "compile in", "CUDA", "sm")
NOTES = (
    "AOTI: whether AOTInductor archives are loaded, and their requests merged into batches",
    "torch, compile in: what compiles such an archive, and the month of its image nvcr.io/nvidia/pytorch:<month>-py3",
    "sm: compute capabilities of the GPUs, 90 for 9.0; ?: not known; *: assumed",
)
_UNKNOWN = "?"


def release_rows() -> list[tuple[str, ...]]:
    """One row of text per release, the newest first, in the order of `HEADINGS`."""
    return [_row(release) for release in reversed(read_releases().releases)]


def releases_table() -> "RenderableType":
    """The table for a terminal, with what its signs mean."""
    from rich.console import Group
    from rich.text import Text

    table = table_of(*HEADINGS)
    for row in release_rows():
        table.add_row(*row)
    return Group(title("Triton releases"), table, *(Text(note) for note in NOTES))


def target_table(target: Target) -> "RenderableType":
    """One target: its values, how each is known and from where, and its release's known defects."""
    from rich.console import Group
    from rich.text import Text

    table, sources = table_of("fact", "value", "known by", "source"), read_releases().sources
    rows = fact_rows(target)
    for row in rows:
        table.add_row(*row)
    used = dict.fromkeys(row[-1] for row in rows)
    notes = "\n".join(f"{name}: {sources[name]}" for name in used if name in sources)
    parts: list[RenderableType] = [title(f"{target.name}: {target.description}"), table, Text(f"\n{notes}")]
    bugs = read_releases().bugs
    for name in target.known_bugs:
        bug = bugs[name]
        parts.append(Text(f"\n{name}: {bug.says}\n  known by {bug.how}: {bug.source}\n  to do: {bug.remedy}"))
    return Group(*parts)


def fact_rows(target: Target) -> list[tuple[str, str, str, str]]:
    """Name, value, how it is known, and the key of the source, for each fact of a target."""
    release = next((known for known in read_releases().releases if known.triton == target.triton), None)
    if release is None:
        return [(name, str(getattr(target, name)), "chosen", target.source) for name in ("opset", "ir_version")]
    return [(name, _plain(fact), fact.how, fact.source) for name, fact in release.facts.items()]


def _row(release: Release) -> tuple[str, ...]:
    facts = release.facts
    torch, image = facts["torch"].value, facts["pytorch_container"].value
    gpus = [str(gpu.sm) for gpu in read_releases().gpus if release.admits(gpu)]
    return (
        release.triton,
        _marked(facts["server_version"]),
        _marked(facts["onnxruntime"]),
        _marked(facts["opset"]),
        _marked(facts["ir_version"]),
        _aoti(release),
        str(torch).split("+")[0] if torch else _UNKNOWN,
        str(image).rpartition(":")[2].removesuffix("-py3") if image else _UNKNOWN,
        _marked(facts["cuda"]),
        f"{gpus[0]}-{gpus[-1]}" + _star([facts["architectures"]]),
    )


def _aoti(release: Release) -> str:
    loads, batches = release.facts["aoti_loads"], release.facts["aoti_batches"]
    word = "no" if not loads.value else "batches" if batches.value else "unbatched"
    return word + _star([loads, batches])


def _marked(fact: Fact) -> str:
    return _plain(fact) + _star([fact])


def _star(facts: Sequence[Fact]) -> str:
    return "*" if any(fact.how == "assumed" for fact in facts) else ""


def _plain(fact: Fact) -> str:
    if fact.value is None:
        return _UNKNOWN
    if isinstance(fact.value, bool):
        return "yes" if fact.value else "no"
    return ", ".join(fact.value) if isinstance(fact.value, tuple) else str(fact.value)
