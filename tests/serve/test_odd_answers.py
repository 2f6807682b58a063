"""A client of something that is no Triton, or a broken one: a failure of the request in words, never a bug of ours."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from deploy.serve.client import Client, ModelAddress, RequestFailed
from deploy.serve.ports import Ports
from deploy.serve.server import TritonServer
from tests.slo.gateway import answering

LAW = ModelAddress(name="law", version=1, outputs=("OUTPUT__0",))
ROW = {"INPUT__0": np.zeros((1, 4), np.float32)}
PAGE = b"<html>Please log in</html>"
SHORT = json.dumps({"outputs": [{"name": "OUTPUT__0", "datatype": "FP32", "shape": [1, 3], "data": [0.5]}]}).encode()

CALLS: dict[str, Callable[[Client], Any]] = {
    "infer": lambda client: client.infer(LAW, ROW),
    "statistics": lambda client: client.statistics(LAW),
    "server_version": lambda client: client.server_version(),
}


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (PAGE, {}),
        (b"", {}),
        (b"[]", {}),
        (b"7", {}),
        (SHORT, {}),
        (SHORT, {"Inference-Header-Content-Length": "x"}),
    ],
)
def test_what_no_triton_says_is_no_answer(body: bytes, headers: dict[str, str]) -> None:
    with answering(body, headers) as address, Client("http", address, seconds=5) as client:
        for call in CALLS.values():
            with pytest.raises(RequestFailed, match=address):
                call(client)


@pytest.mark.parametrize("body", [PAGE, SHORT])
def test_of_several_requests_each_fails_by_itself(body: bytes) -> None:
    with answering(body) as address, Client("http", address, seconds=5) as client:
        found = client.infer_all(LAW, [ROW, ROW])
    assert [type(one) for one in found] == [RequestFailed, RequestFailed]


@pytest.mark.parametrize("body", [PAGE, b"[]", b"", b'{"name": "triton"}'])
def test_who_took_a_port_meanwhile_is_not_our_server(body: bytes, tmp_path: Path) -> None:
    server = TritonServer(tmp_path, engine=cast(Any, None))
    with answering(body) as address:
        port = int(address.rpartition(":")[2])
        server._ports = Ports(http=port, grpc=port, metrics=port)
        assert not server._is_ready()
    ours = json.dumps({"name": server._id, "version": "2.51.0"}).encode()
    with answering(ours) as address:
        port = int(address.rpartition(":")[2])
        server._ports = Ports(http=port, grpc=port, metrics=port)
        assert server._is_ready()
