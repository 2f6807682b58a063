"""The head of an ONNX file tells its IR version and opsets, read without ONNX and past any weights."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from deploy.errors import UsageError
from deploy.repository.onnx_header import read_onnx_header

FLOAT = onnx.TensorProto.FLOAT


def model(*, opset: int = 20, ir_version: int = 10, domains: dict[str, int] | None = None) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, [1000])],
        [helper.make_tensor_value_info("y", FLOAT, [1000])],
        [numpy_helper.from_array(np.ones(1000, np.float32), "w")],
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in {"": opset, **(domains or {})}.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, producer_name="somebody")


@pytest.mark.parametrize(("opset", "ir_version"), [(1, 3), (20, 10), (26, 13), (300, 200)])
def test_it_is_what_onnx_reads(tmp_path: Path, opset: int, ir_version: int) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model(opset=opset, ir_version=ir_version).SerializeToString())
    header = read_onnx_header(path)
    loaded = onnx.load_model(path)
    assert (header.opset, header.ir_version) == (loaded.opset_import[0].version, loaded.ir_version)
    assert (header.opset, header.ir_version) == (opset, ir_version)


def test_other_domains_are_kept_apart_and_the_long_name_is_the_same_domain(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model(domains={"com.microsoft": 1, "ai.onnx.ml": 5}).SerializeToString())
    assert read_onnx_header(path).opsets == {"": 20, "com.microsoft": 1, "ai.onnx.ml": 5}
    long = model()
    long.opset_import[0].domain = "ai.onnx"
    path.write_bytes(long.SerializeToString())
    assert read_onnx_header(path).opset == 20


def test_a_folder_with_the_weights_beside_is_read_too(tmp_path: Path) -> None:
    folder = tmp_path / "model.onnx"
    folder.mkdir()
    onnx.save_model(model(), folder / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    assert (folder / "weights").stat().st_size == 4000
    assert read_onnx_header(folder).opset == 20


def model_without_graph() -> bytes:
    head = model()
    head.ClearField("graph")
    serialized: bytes = head.SerializeToString()
    return serialized


def test_it_seeks_past_the_weights(tmp_path: Path) -> None:
    """A file of 3 GB that is mostly a hole, behind a true head: reading it all would take seconds and the memory."""
    path = tmp_path / "model.onnx"
    size = 3_000_000_000
    length = b"".join(
        bytes([(size >> shift) & 0x7F | (0x80 if size >> (shift + 7) else 0)]) for shift in range(0, 32, 7)
    )
    with path.open("wb") as file:
        file.write(b"\x3a" + length)
        file.seek(size, 1)
        file.write(model_without_graph())
    assert read_onnx_header(path).opset == 20


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda _: b"weights",
        lambda _: b"",
        lambda _: b"\xff" * 40,
        lambda _: b"PK\x03\x04 a zip",
        lambda data: model_without_graph() + b"\x3a\xff\x7f" + data[:9],
    ],
    ids=["half", "text", "empty", "ones", "zip", "cut in the weights"],
)
def test_what_is_no_model_is_refused(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(damage(model().SerializeToString()))  # type: ignore[operator]
    with pytest.raises(UsageError, match="is no ONNX model"):
        read_onnx_header(path)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no ONNX model"):
        read_onnx_header(tmp_path / "model.onnx")
