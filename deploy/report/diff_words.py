"""The words for what two versions differ in, that terminal, Markdown and HTML share: written once, judged nowhere.

Owns no layout. Called by this room only.
"""

from collections.abc import Iterator

from deploy.report.words import DASH, percent, printable, times
from deploy.validate.difference_records import (
    AnswerDifference,
    Change,
    DecisionDifference,
    DiffEvidence,
    Flip,
    OutputDifference,
)

_LONGEST = 120
FLIPS_SHOWN = 20
CLASSES_SHOWN = 10
CHANGES_SHOWN = 60


def gate_name(name: str) -> str:
    """`--max-flips`, as it was asked for."""
    return f"--{name.replace('_', '-')}"


def flips_line(found: DecisionDifference) -> str:
    """How many decisions flip, which share that is, and what it says of traffic like these rows."""
    return (
        f"{found.flipped:,} of {found.decisions:,} decisions flip in {found.rows:,} rows: {percent(found.share)}, "
        f"{percent(found.low)[:-2]} to {percent(found.high)} at {found.confidence:.0%} confidence"
    )


def output_cells(output: OutputDifference) -> tuple[str, ...]:
    """Name, largest error, relative L2 error, multiple of eager's own, flips."""
    numbers = (DASH, DASH, DASH)
    if output.elements:
        multiple = DASH if output.eager_multiple is None else f"{times(output.eager_multiple)}x"
        numbers = (f"{output.max_error:.3g} of {output.scale:.3g}", f"{output.relative_l2:.2e}", multiple)
    found = output.decisions
    flips = f"{found.flipped:,} of {found.decisions:,}" if found else DASH
    return (printable(output.output), *numbers, flips)


OUTPUT_HEAD = ("output", "max error", "relative L2", "in eager's own", "flips")


def output_lines(answers: AnswerDifference) -> Iterator[str]:
    """What a table of numbers cannot say of the outputs, and where the rows came from."""
    for one in answers.outputs:
        if one.incomparable:
            yield printable(f"{one.output}: {one.incomparable}")
        if one.misplaced:
            yield printable(f"{one.output}: {one.misplaced:,} elements are finite in one version only")
        if one.decisions:
            yield printable(f"{one.output}: {flips_line(one.decisions)}")
        if one.seeded_decisions:
            yield printable(f"{one.output}, seeded inputs, not judged: {flips_line(one.seeded_decisions)}")
    if found := answers.accuracy:
        yield (
            f"accuracy: {found.before:.2%} before, {found.after:.2%} after on {found.rows:,} labelled rows; "
            f"{found.fixed:,} fixed, {found.broken:,} broken; a drop of {found.low:+.2%} to {found.high:+.2%}"
        )
    real = [f"{one.counted:,} {one.name}" for one in answers.sources if one.real and one.counted]
    seeded = sum(one.counted for one in answers.sources if not one.real)
    asked = ", ".join([*real, *([f"{seeded:,} seeded rows"] if seeded else [])])
    yield printable(f"asked: {asked}; judged on the {answers.judged_on}")


FLIP_HEAD = ("sample", "output", "before", "after", "margin before", "truth")


def flip_cells(flip: Flip) -> tuple[str, ...]:
    """Where a decision flipped, and what both versions said."""
    place = f" at {list(flip.place)}" if flip.place else ""
    where = printable(f"{flip.source}, row {flip.row}{place}", _LONGEST)
    said = (printable(str(one), _LONGEST) for one in (flip.before, flip.after))
    return (where, printable(flip.output), *said, f"{flip.margin:.3g}", printable(flip.truth or DASH))


CLASS_HEAD = ("class before", "decisions", "flipped", "became")


def class_rows(answers: AnswerDifference) -> list[tuple[str, ...]]:
    """The classes that flip most, over all outputs."""
    found = [one for output in answers.outputs if output.decisions for one in output.decisions.by_class]
    return [
        (
            printable(one.label, _LONGEST),
            f"{one.decisions:,}",
            f"{one.flipped:,}",
            printable(", ".join(f"{label}: {count:,}" for label, count in one.became.items()), _LONGEST),
        )
        for one in found[:CLASSES_SHOWN]
    ]


def flips(answers: AnswerDifference) -> tuple[list[Flip], int]:
    """The flips to show, and how many more there are."""
    found = [one for output in answers.outputs if output.decisions for one in output.decisions.flips]
    more = sum(output.decisions.left_out for output in answers.outputs if output.decisions)
    return found[:FLIPS_SHOWN], max(0, len(found) - FLIPS_SHOWN) + more


def size_line(evidence: DiffEvidence) -> str:
    """Bytes of the artifact, before and after."""
    size = evidence.size
    return f"artifact: {size.artifact_before:,} bytes before, {size.artifact_after:,} after ({size.ratio:.3g}x)"


def latency_lines(evidence: DiffEvidence) -> Iterator[str]:
    """The ratio at each batch size with its interval, the noise beside it; or why there is none."""
    if evidence.latency is None:
        yield printable(f"latency: {evidence.left_out.get('latency', 'not measured')}")
        return
    for ratio in evidence.latency.ratios:
        yield printable(f"latency, batch {ratio.batch}: {ratio.contender} takes {ratio} of {ratio.base}'s time")
    for lost in evidence.latency.lost:
        yield printable(f"latency: {lost}", 1000)


CHANGE_HEAD = ("part", "what", "before", "after")


def change_cells(change: Change) -> tuple[str, ...]:
    """One fact that differs; what clients will notice is in its name."""
    what = f"{change.what} ({change.notice})" if change.notice else change.what
    values = (printable(value or DASH, _LONGEST) for value in (change.before, change.after))
    return (change.part, printable(what, 2 * _LONGEST), *values)


def left_out_lines(evidence: DiffEvidence) -> list[str]:
    """What was not compared, and why."""
    return [printable(f"{what} not compared: {why}") for what, why in evidence.left_out.items() if what != "latency"]
