"""Whether something holds at every size that requests may have, found by trying them all.

Owns two mends of torch's tracer. A network that cuts one map to another's size, or pools with `ceil_mode`, asks whether
`2 * (height // 2) <= height`. It is so for any height, torch cannot tell, takes the answer of the traced sample for a
bound, and refuses the sizes that were asked for. And `torch.cdist` has one way to compute few distances and another for
many, which makes the number where they part a bound. Called by traced, round each export.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

_MOST = 40_000  # steps of arithmetic for one question: about a second
_IN_ALL = 1_200_000  # and for all questions of one export or compilation: about half a minute
# What torch's reasoning by bounds loses track of: sums and products it can do.
_ARITHMETIC = (
    "FloorDiv", "CleanDiv", "IntTrueDiv", "FloatTrueDiv", "Mod", "PythonMod", "ToFloat", "TruncToInt", "FloorToInt",
    "CeilToInt", "RoundToInt", "Max", "Min",
)  # fmt: skip
_EITHER, _EXACTLY = "use_mm_for_euclid_dist_if_necessary", "donot_use_mm_for_euclid_dist"
_PROBES = 7  # tried first: what depends on the size mostly shows within a few


@dataclass(slots=True)
class Tries:
    """How many steps are left for questions to come, and how many questions were not tried for want of them."""

    steps: int
    untried: int = 0
    _found: dict[Any, frozenset[bool] | None] = field(default_factory=dict)

    def answers(self, question: Any, ranges: tuple[tuple[Any, range], ...]) -> frozenset[bool] | None:
        """The answers at all sizes; empty where torch's own arithmetic cannot tell, None where none was tried."""
        key = (question, ranges)
        if key not in self._found:
            self._found[key] = self._tried(question, ranges)
        return self._found[key]

    def _tried(self, question: Any, ranges: tuple[tuple[Any, range], ...]) -> frozenset[bool] | None:
        from sympy import preorder_traversal  # type: ignore[import-untyped]

        each = sum(1 for _ in preorder_traversal(question))
        most = each * math.prod(len(sizes) for _, sizes in ranges)
        if most > min(_MOST, self.steps):
            self.untried += 1
            return None
        answers, places = _answers(question, ranges)
        self.steps = max(self.steps - each * places, 0)  # the first few are asked twice
        return answers


@contextmanager
def sizes_tried(*, general: bool = False, steps: int = _IN_ALL) -> Iterator[Tries]:
    """While this lasts, a question with the same answer at every size binds none; at most `steps` are tried in all.

    With `general`, one whose answers differ, or that is too long to try, is told what holds for any of them, where
    whoever asks has such a way: a compiler that goes by the traced sample instead writes code for that one's sizes.
    Others bind as ever, as all do in a release of torch that asks otherwise. Not for use in several threads at once.
    """
    from sympy import sympify
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    tries = Tries(steps)
    asked: Callable[..., Any] | None = getattr(ShapeEnv, "_evaluate_expr", None)
    if asked is None:
        yield tries
        return
    takes = inspect.signature(asked)

    def tried(self: Any, orig_expr: Any, *given: Any, **named: Any) -> Any:
        ranges = _ranges(self, orig_expr)
        if not ranges or self._maybe_evaluate_static(orig_expr) is not None:
            return asked(self, orig_expr, *given, **named)
        answers = tries.answers(orig_expr, ranges)
        if answers and len(answers) == 1:
            return sympify(*answers)
        otherwise = takes.bind(self, orig_expr, *given, **named).arguments.get("fallback_value")
        if answers != frozenset() and general and otherwise is not None:
            return sympify(otherwise)
        return asked(self, orig_expr, *given, **named)

    ShapeEnv._evaluate_expr = tried  # type: ignore[method-assign]
    try:
        yield tries
    finally:
        ShapeEnv._evaluate_expr = asked  # type: ignore[method-assign]


def _ranges(environment: Any, question: Any) -> tuple[tuple[Any, range], ...]:
    """The symbols of a question that torch cannot reason about, each with the sizes it may be; empty for any other."""
    from sympy.logic.boolalg import Boolean  # type: ignore[import-untyped]
    from torch.utils._sympy import functions

    hard = [getattr(functions, name) for name in _ARITHMETIC if hasattr(functions, name)]
    if not isinstance(question, Boolean) or not question.has(*hard):
        return ()
    ranges = []
    for symbol in sorted(question.free_symbols, key=str):
        bounds = environment.var_to_range.get(symbol)
        # One without a hint is a value of the data, whose bounds are no sizes that anybody asked for.
        if bounds is None or symbol not in _hints(environment):
            return ()
        if not (bounds.lower.is_Integer and bounds.upper.is_Integer):
            return ()
        ranges.append((symbol, range(int(bounds.lower), int(bounds.upper) + 1)))
    return tuple(ranges)


def _hints(environment: Any) -> Any:
    return getattr(environment, "backed_var_to_val", None) or getattr(environment, "var_to_val", {})


def _answers(question: Any, ranges: tuple[tuple[Any, range], ...]) -> tuple[frozenset[bool], int]:
    """The answers at all sizes, none where torch's own arithmetic cannot tell, and at how many places it was asked."""
    from torch.utils._sympy.interp import sympy_interp
    from torch.utils._sympy.reference import PythonReferenceAnalysis

    symbols = [symbol for symbol, _ in ranges]
    step = [max(1, len(sizes) // _PROBES) for _, sizes in ranges]
    few = itertools.product(*(sizes[::by] for (_, sizes), by in zip(ranges, step, strict=True)))
    answers: set[bool] = set()
    places = 0
    for sizes in itertools.chain(few, itertools.product(*(sizes for _, sizes in ranges))):
        places += 1
        try:
            answers.add(bool(sympy_interp(PythonReferenceAnalysis, dict(zip(symbols, sizes, strict=True)), question)))
        except (NotImplementedError, ArithmeticError, TypeError):
            return frozenset(), places
        if len(answers) > 1:
            break
    return frozenset(answers), places


@contextmanager
def distances_of_any_number() -> Iterator[None]:
    """While this lasts `torch.cdist` of tensors whose sizes follow from requests is traced in its exact way.

    Not for use in several threads at once.
    """
    import torch

    computed = torch.cdist

    def cdist(x1: Any, x2: Any, p: float = 2.0, compute_mode: str = _EITHER) -> Any:
        sizes = (*x1.shape[-2:], *x2.shape[-2:])
        if compute_mode == _EITHER and any(isinstance(size, torch.SymInt) for size in sizes):
            compute_mode = _EXACTLY
        return computed(x1, x2, p, compute_mode)

    torch.cdist = torch.functional.cdist = cdist
    try:
        yield
    finally:
        torch.cdist = torch.functional.cdist = computed
