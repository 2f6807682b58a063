"""What an ensemble is asked under load: the images that it was proven with, as bytes on either wire."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.errors import UsageError
from deploy.slo.counters import ServedInput, ServedMetadata
from deploy.slo.question import find_rows, find_subject, make_query
from deploy.slo.records import Bound
from deploy.slo.request import SloRequest
from deploy.slo.wire import WireOutput, _grpc_body, _http_body
from tests.repository.ensembles import IMAGES, WHOLE, put_ensemble

METADATA = ServedMetadata(
    versions=("1",),
    inputs=(ServedInput(name="INPUT__0", datatype="BYTES", shape=(-1, 1)),),
    outputs=(WireOutput(name="OUTPUT__0", datatype="BYTES", shape=(-1, 3)),),
)


def test_an_ensemble_is_asked_with_its_own_whole_images(tmp_path: Path) -> None:
    put_ensemble(tmp_path)
    subject = find_subject(WHOLE, tmp_path)
    rows = find_rows(subject, None, METADATA)
    assert rows.source == f"evidence of {WHOLE}:1: 2 images"
    query = make_query(subject, rows, METADATA)
    assert [inputs["INPUT__0"].tolist() for inputs in query.inputs] == [[[IMAGES[0]]], [[IMAGES[1]]]]


def test_images_are_on_both_wires_what_triton_reads(tmp_path: Path) -> None:
    from tritonclient.grpc import service_pb2
    from tritonclient.utils import deserialize_bytes_tensor

    put_ensemble(tmp_path)
    subject = find_subject(WHOLE, tmp_path)
    query = make_query(subject, find_rows(subject, None, METADATA), METADATA)
    request = service_pb2.ModelInferRequest.FromString(_grpc_body(query, query.inputs[1]))
    assert (request.inputs[0].datatype, list(request.inputs[0].shape)) == ("BYTES", [1, 1])
    assert deserialize_bytes_tensor(request.raw_input_contents[0]).tolist() == [IMAGES[1]]
    body, headers = _http_body(query, query.inputs[1])
    head = int(headers["Inference-Header-Content-Length"])
    (tensor,) = json.loads(body[:head])["inputs"]
    assert tensor["parameters"]["binary_data_size"] == len(body) - head
    assert deserialize_bytes_tensor(body[head:]).tolist() == [IMAGES[1]]


def test_a_model_that_takes_bfloat16_is_asked_with_rounded_floats(tmp_path: Path) -> None:
    from tritonclient.grpc import service_pb2

    values = np.array([[1.0, -2.5, 1.00390625], [3.4e38, 1e-3, -7.0]], np.float32)
    np.savez(tmp_path / "rows.npz", allow_pickle=False, x=values)
    inputs = (ServedInput(name="x", datatype="BF16", shape=(-1, 3)),)
    metadata = ServedMetadata(versions=("1",), inputs=inputs, outputs=())
    subject = find_subject("half", None)
    query = make_query(subject, find_rows(subject, tmp_path / "rows.npz", metadata), metadata)
    wanted = torch.tensor(values).bfloat16().float().numpy()
    for row, asked in enumerate(query.inputs):
        request = service_pb2.ModelInferRequest.FromString(_grpc_body(query, asked))
        assert (request.inputs[0].datatype, list(request.inputs[0].shape)) == ("BF16", [1, 3])
        sent = torch.frombuffer(bytearray(request.raw_input_contents[0]), dtype=torch.bfloat16)
        assert sent.tolist() == wanted[row].tolist()
        body, headers = _http_body(query, asked)
        head = int(headers["Inference-Header-Content-Length"])
        assert json.loads(body[:head])["inputs"][0]["datatype"] == "BF16"
        assert body[head:] == request.raw_input_contents[0]


def test_texts_in_samples_are_refused_with_a_way_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", allow_pickle=False, x=np.array(["a", "b"]))
    with pytest.raises(UsageError, match=r"BYTES, which --samples cannot hold[\s\S]*--repository"):
        find_rows(find_subject("whole", None), tmp_path / "rows.npz", METADATA)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"limit": 1e300}, "would wait 1e.298 s"),
        ({"limit": 1e9}, "would wait 1e.07 s"),
        ({"deadline": 1e6}, "would wait 1e.06 s"),
        ({"rate": 1e-300}, "a rate of 1e-300"),
    ],
    ids=["bound", "a smaller one", "deadline", "rate"],
)
def test_what_the_load_generator_cannot_count_is_refused(asked: dict[str, float], said: str) -> None:
    bound = Bound(kind="latency", q=0.99, limit=asked.get("limit", 15.0))
    with pytest.raises(UsageError, match=said):
        SloRequest(reference="m", url="", bounds=(bound,), rate=asked.get("rate", 1.0), deadline=asked.get("deadline"))


def test_arrays_are_no_files(tmp_path: Path) -> None:
    put_ensemble(tmp_path / "models")
    np.savez(tmp_path / "samples.npz", INPUT__0=np.ones((2, 1), np.float32))
    with pytest.raises(UsageError, match="an ensemble that takes files or texts"):
        find_rows(find_subject(WHOLE, tmp_path / "models"), tmp_path / "samples.npz", METADATA)
    with pytest.raises(UsageError, match="BYTES, which --samples cannot hold") as refused:
        find_rows(find_subject(WHOLE, None), tmp_path / "samples.npz", METADATA)
    assert "--repository" in refused.value.fix


@pytest.mark.parametrize(
    ("shape", "samples", "asked"),
    [
        ((-1, 4), (3, 4), (1, 4)),
        ((1, 4), (3, 4), (1, 4)),
        # A model that batches nothing: the first size is the tensor's own.
        ((4,), (3, 4), (4,)),
        ((2, 4), (3, 2, 4), (2, 4)),
    ],
)
def test_a_sample_is_a_row_or_the_whole_tensor(
    shape: tuple[int, ...], samples: tuple[int, ...], asked: tuple[int, ...], tmp_path: Path
) -> None:
    values = np.arange(np.prod(samples), dtype=np.float32).reshape(samples)
    np.savez(tmp_path / "samples.npz", allow_pickle=False, X=values)
    served = ServedMetadata(
        versions=("1",),
        inputs=(ServedInput(name="X", datatype="FP32", shape=shape),),
        outputs=(WireOutput(name="Y", datatype="FP32", shape=shape),),
    )
    subject = find_subject("plain", None)
    query = make_query(subject, find_rows(subject, tmp_path / "samples.npz", served), served)
    assert [inputs["X"].shape for inputs in query.inputs] == [asked] * 3
    assert query.inputs[1]["X"].ravel().tolist() == values[1].ravel().tolist()
    assert query.outputs[0].shape == asked
    wrong = ServedMetadata(versions=("1",), inputs=(ServedInput(name="X", datatype="FP32", shape=(5,)),), outputs=())
    with pytest.raises(UsageError, match=r"rows"):
        find_rows(subject, tmp_path / "samples.npz", wrong)
