"""What the compiler needs of the process that runs it."""

import operator
import sys

import torch

from deploy.convert.compiler import deep_recursion


def test_a_deep_graph_may_be_followed_from_node_to_node() -> None:
    graph = torch.fx.Graph()
    value = graph.placeholder("x")
    for _ in range(3 * sys.getrecursionlimit()):
        value = graph.call_function(operator.neg, (value,))
    before, seen = sys.getrecursionlimit(), []

    def visit(node: torch.fx.Node) -> None:
        for given in node.all_input_nodes:
            visit(given)
        seen.append(node)

    with deep_recursion(graph):
        visit(value)
    assert len(seen) == len(graph.nodes)
    assert sys.getrecursionlimit() == before
