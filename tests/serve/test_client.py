"""A real server's answers: exact with numpy 2 over both protocols, merged by the batcher, each request on its own."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from deploy.repository.layout import Version
from deploy.serve.client import PROTOCOLS, Client, ModelAddress, Protocol, RequestFailed
from deploy.serve.engines import Engine
from deploy.serve.server import TritonServer
from deploy.serve.serving import serving
from deploy.spec import BATCH, Dim, Spec, TensorSpec
from tests.repository.samples import CLASSES, Sample
from tests.serve.conftest import Served
from tests.serve.tiny import Linear, images, onnx_bytes, publish

pytestmark = pytest.mark.engine

DTYPES = ("bool", "uint8", "int8", "int32", "int64", "float16", "float64")


def address(version: Version, outputs: int = 1) -> ModelAddress:
    names = tuple(f"OUTPUT__{index}" for index in range(outputs))
    return ModelAddress(name=version.name, version=version.number, outputs=names)


def connect(server: TritonServer, protocol: Protocol) -> Client:
    return Client(protocol, server.grpc_address if protocol == "grpc" else server.http_address)


@pytest.fixture(params=PROTOCOLS)
def client(served: Served, request: pytest.FixtureRequest) -> Iterator[Client]:
    with connect(served.server, request.param) as connected:
        yield connected


@pytest.mark.parametrize("format", ["onnx", "aoti"])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_answers_are_those_of_the_model(served: Served, client: Client, format: str, rows: int) -> None:
    assert int(np.__version__.partition(".")[0]) >= 2, "the trap this guards against is numpy 2 in the stub"
    batch = images(rows)
    found = client.infer(address(getattr(served, format)), {"INPUT__0": batch})["OUTPUT__0"]
    assert (found.dtype, found.shape) == (np.dtype("float32"), (rows, len(CLASSES)))
    np.testing.assert_allclose(found, Linear().outputs(batch), rtol=0, atol=1e-4)


def test_both_protocols_give_the_same_bytes(served: Served) -> None:
    batch, found = images(4), []
    for protocol in PROTOCOLS:
        with connect(served.server, protocol) as client:
            found.append(client.infer(address(served.aoti), {"INPUT__0": batch})["OUTPUT__0"])
    assert found[0].tobytes() == found[1].tobytes()


@pytest.mark.parametrize("format", ["onnx", "aoti"])
def test_concurrent_requests_are_merged_and_each_gets_its_own_rows(served: Served, client: Client, format: str) -> None:
    model = address(getattr(served, format))
    batches = [images(1 + number % 3, seed=number) for number in range(40)]
    for _ in range(20):
        before = client.statistics(model)
        answers = client.infer_all(model, [{"INPUT__0": batch} for batch in batches])
        counted = client.counted(model, since=before, requests=len(batches))
        for batch, answer in zip(batches, answers, strict=True):
            assert not isinstance(answer, RequestFailed)
            np.testing.assert_allclose(answer["OUTPUT__0"], Linear().outputs(batch), rtol=0, atol=1e-4)
        assert (counted.requests, counted.inferences) == (40, sum(map(len, batches)))
        if counted.executions < counted.requests:
            return
    pytest.fail("the batcher merged nothing in 20 bursts")


def test_the_classification_extension_names_the_classes(served: Served, client: Client) -> None:
    batch = images(2)
    scores = Linear().outputs(batch)
    found = client.classify(address(served.onnx), {"INPUT__0": batch}, count=2)
    for row, entries in zip(scores, found, strict=True):
        best = row.argsort()[::-1][:2]
        assert [(entry.index, entry.label) for entry in entries] == [(index, CLASSES[index]) for index in best]
        assert entries[0].score == pytest.approx(float(row.max()), abs=1e-4)


def test_a_refused_request_names_the_servers_reason(served: Served, client: Client) -> None:
    with pytest.raises(RequestFailed, match=r"over (grpc|http).*batch-size must be <= 8"):
        client.infer(address(served.onnx), {"INPUT__0": images(9)})
    with pytest.raises(RequestFailed, match="unknown model"):
        client.infer(ModelAddress(name="cats", version=1, outputs=("OUTPUT__0",)), {"INPUT__0": images(1)})


def test_readiness_and_version(served: Served, client: Client) -> None:
    assert client.ready(address(served.onnx))
    assert not client.ready(ModelAddress(name="cats", version=1, outputs=()))
    assert client.server_version() == served.server.engine.server_version


def test_no_server_is_said_as_such() -> None:
    for protocol in PROTOCOLS:
        with (
            Client(protocol, "127.0.0.1:1", seconds=5) as client,
            pytest.raises(RequestFailed, match=r"127\.0\.0\.1:1"),
        ):
            client.server_version()


def many_types() -> tuple[bytes, Spec]:
    """Each input comes back; then the greatest of each row of the last one, a row that is a scalar."""
    kinds = [helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) for dtype in DTYPES]
    nodes = [helper.make_node("Identity", [f"INPUT__{i}"], [f"OUTPUT__{i}"]) for i in range(len(DTYPES))]
    last = len(DTYPES)
    nodes.append(helper.make_node("ReduceMax", [f"INPUT__{last - 1}"], [f"OUTPUT__{last}"], axes=[1], keepdims=0))
    inputs = [helper.make_tensor_value_info(f"INPUT__{i}", kind, [BATCH, 2]) for i, kind in enumerate(kinds)]
    outputs = [helper.make_tensor_value_info(f"OUTPUT__{i}", kind, [BATCH, 2]) for i, kind in enumerate(kinds)]
    outputs.append(helper.make_tensor_value_info(f"OUTPUT__{last}", kinds[-1], [BATCH]))
    tensors = tuple(TensorSpec(name=f"t{i}", dtype=dtype, shape=(BATCH, 2)) for i, dtype in enumerate(DTYPES))
    greatest = TensorSpec(name="greatest", dtype=DTYPES[-1], shape=(BATCH,))
    spec = Spec(inputs=tensors, outputs=(*tensors, greatest), dims=(Dim(name=BATCH, minimum=1, maximum=4),))
    return onnx_bytes(helper.make_graph(nodes, "types", inputs, outputs)), spec


def chooser() -> tuple[bytes, Spec]:
    """Looks up a row of a table by index: an index that is out of range fails at run time."""
    table = numpy_helper.from_array(np.arange(8, dtype=np.float32).reshape(4, 2), "table")
    graph = helper.make_graph(
        [helper.make_node("GatherND", ["table", "INPUT__0"], ["OUTPUT__0"])],
        "chooser",
        [helper.make_tensor_value_info("INPUT__0", onnx.TensorProto.INT64, [BATCH, 1])],
        [helper.make_tensor_value_info("OUTPUT__0", onnx.TensorProto.FLOAT, [BATCH, 2])],
        [table],
    )
    spec = Spec(
        inputs=(TensorSpec(name="index", dtype="int64", shape=(BATCH, 1)),),
        outputs=(TensorSpec(name="row", dtype="float32", shape=(BATCH, 2)),),
        dims=(Dim(name=BATCH, minimum=1, maximum=8),),
    )
    return onnx_bytes(graph), spec


@pytest.fixture(scope="module")
def odd(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TritonServer, Version, Version]]:
    repository = tmp_path_factory.mktemp("odd") / "models"
    weights, spec = many_types()
    types = publish(repository, weights, Sample(name="types", spec=spec, classes=None))
    weights, spec = chooser()
    rows = publish(repository, weights, Sample(name="chooser", spec=spec, classes=None))
    with serving([types, rows], engine=engine) as server:
        yield server, types, rows


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_dtype_and_a_scalar_row_come_back_unchanged(
    odd: tuple[TritonServer, Version, Version], protocol: Protocol
) -> None:
    server, types, _ = odd
    generator = np.random.default_rng(0)
    sent = {f"INPUT__{i}": generator.integers(0, 2, (3, 2)).astype(dtype) for i, dtype in enumerate(DTYPES)}
    with connect(server, protocol) as client:
        found = client.infer(address(types, len(DTYPES) + 1), sent)
    for index, dtype in enumerate(DTYPES):
        assert found[f"OUTPUT__{index}"].dtype == np.dtype(dtype)
        np.testing.assert_array_equal(found[f"OUTPUT__{index}"], sent[f"INPUT__{index}"])
    greatest = sent[f"INPUT__{len(DTYPES) - 1}"].max(axis=1, keepdims=True)
    np.testing.assert_array_equal(found[f"OUTPUT__{len(DTYPES)}"], greatest)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_bad_request_fails_alone(odd: tuple[TritonServer, Version, Version], protocol: Protocol) -> None:
    server, _, rows = odd
    indices = [0, 99, 2, 3] * 8
    requests = [{"INPUT__0": np.array([[index]], np.int64)} for index in indices]
    with connect(server, protocol) as client:
        answers = client.infer_all(address(rows), requests)
    for index, answer in zip(indices, answers, strict=True):
        if index == 99:
            assert isinstance(answer, RequestFailed)
            assert "invalid index found" in answer.found
        else:
            assert not isinstance(answer, RequestFailed)
            assert answer["OUTPUT__0"].tolist() == [[2.0 * index, 2.0 * index + 1]]


def test_the_published_files_are_what_is_served(served: Served, tmp_path: Path) -> None:
    model = served.server.repository / served.onnx.name
    assert (model / "1" / "model.onnx").resolve() == served.onnx.folder.resolve() / "model.onnx"
    assert (model / "config.pbtxt").read_text() != served.onnx.config.read_text()
