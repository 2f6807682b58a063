"""How a version that was published is told to people and to machines, whatever it was packaged from.

Owns words only. Called by what `package` prints for each of its ways.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.repository.publish import PublishedVersion


def published_line(published: "PublishedVersion", *, remark: str = "") -> str:
    """Where it lies, and whether it is served; `remark` stands behind that."""
    promoted = "promoted" if published.promoted else "not promoted: `deployctl promote` makes Triton serve it"
    return f"published: {published.version.folder} ({promoted}{remark})"


def published_facts(published: "PublishedVersion") -> dict[str, Any]:
    """The same as JSON has it."""
    return {
        "name": published.version.name,
        "version": published.version.number,
        "folder": str(published.version.folder),
        "digest": published.digest,
        "promoted": published.promoted,
    }
