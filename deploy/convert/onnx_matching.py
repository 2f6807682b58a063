"""The rewriter of ONNX graphs, without the part of its search that can find nothing.

Owns one mend of onnxscript: for a rule of several nodes it goes through the whole graph at each node, whatever that
node is, a third of all the rewriting of 3,000 nodes, and more with their square. Called by onnx, in a child process.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def first_node_first() -> Iterator[None]:
    """While this lasts, a rule of several nodes is looked for only at nodes that its first one can be.

    What is found is the same: the rewriter compares each choice of nodes in that order. A release of onnxscript that
    searches otherwise is left as it is. Not for use in several threads at once.
    """
    from onnxscript.rewriter import _basics, _matcher

    matcher: Any = getattr(_matcher, "SimplePatternMatcher", None)
    search: Callable[..., Any] | None = getattr(matcher, "match", None)
    if search is None or "node" not in (taken := inspect.signature(search)).parameters:
        yield
        return

    def searched(self: Any, *given: Any, **named: Any) -> Any:
        node = taken.bind(self, *given, **named).arguments["node"]
        nodes = self.pattern.output_nodes
        if len(nodes) > 1 and not nodes[0].matches(node, _basics.MatchResult()):
            return _basics.MatchResult().fail("its first node is another", node)
        return search(self, *given, **named)

    matcher.match = searched
    try:
        yield
    finally:
        matcher.match = search
