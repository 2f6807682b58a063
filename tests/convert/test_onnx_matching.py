"""The rewriter of ONNX graphs finds what it found, without a search of the whole graph at each node."""

from collections.abc import Iterator

import onnx
import onnx_ir as ir
from onnxscript.optimizer import optimize

from deploy.convert.onnx_matching import first_node_first

LENGTH = 60


class Counting(ir.Graph):
    """A graph that counts how often somebody goes through its nodes."""

    walks = 0

    def __iter__(self) -> Iterator[ir.Node]:
        self.walks += 1
        return super().__iter__()


def model() -> ir.Model:
    """A chain of sigmoids, whose end is cut in halves in the way that becomes one Split."""
    chain = " ".join(f"v{step} = Sigmoid(v{step - 1})" for step in range(1, LENGTH + 1))
    text = (
        "<int64[1] zero = {0}, int64[1] three = {3}, int64[1] six = {6}, int64[1] one = {1}> {"
        f"{chain} z = Slice(v{LENGTH}, three, six, one) y = Slice(v{LENGTH}, zero, three, one) }}"
    )
    parsed = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 18]> g (float[2, 6] v0) => (float[2, 3] y, float[2, 3] z) {text}'
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(parsed))


def counting(made: ir.Model) -> tuple[ir.Model, Counting]:
    graph = made.graph
    inputs, outputs, weights, nodes = (
        list(graph.inputs),
        list(graph.outputs),
        list(graph.initializers.values()),
        list(graph),
    )
    graph.remove(nodes)
    for part in (graph.inputs, graph.outputs, graph.initializers):
        part.clear()
    counted = Counting(inputs, outputs, nodes=nodes, initializers=weights, opset_imports={"": 18}, name="g")
    return ir.Model(counted, ir_version=9), counted


def kinds(made: ir.Model) -> list[str]:
    return [node.op_type for node in made.graph]


def test_a_graph_is_not_gone_through_at_each_of_its_nodes() -> None:
    made, graph = counting(model())
    with first_node_first():
        optimize(made)
    assert graph.walks < LENGTH


def test_the_same_is_found_and_the_rewriter_left_as_it_was() -> None:
    plain, quick, after = model(), model(), model()
    optimize(plain)
    with first_node_first():
        optimize(quick)
    optimize(after)
    assert "Split" in kinds(plain)
    assert kinds(quick) == kinds(plain) == kinds(after)
