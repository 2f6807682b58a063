"""Client code to copy and paste for one served version: real names, dtypes and shapes, in Python and for curl.

Owns the text. Called by the command `serve`.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.repository.find import read_manifest
from deploy.repository.layout import Version
from deploy.repository.protobuf import parse_config, schema
from deploy.spec import BATCH, Spec, TensorSpec

_PYTHON = """\
import numpy as np
import tritonclient.grpc as triton

client = triton.InferenceServerClient("{grpc}")
inputs = []
{inputs}
result = client.infer("{name}", inputs, model_version="{version}")
{outputs}
client.close()
"""
_INPUT = """\
inputs.append(triton.InferInput("{wire}", {shape}, "{triton}"))  # {name}
inputs[-1].set_data_from_numpy(np.{filled}({shape}, "{dtype}"))"""
_FILE_INPUT = """\
inputs.append(triton.InferInput("{wire}", {shape}, "BYTES"))  # {name}
with open("{file}", "rb") as file:
    inputs[-1].set_data_from_numpy(np.array(file.read(), object).reshape({shape}))"""
_TEXT_INPUT = """\
inputs.append(triton.InferInput("{wire}", {shape}, "BYTES"))  # {name}
inputs[-1].set_data_from_numpy(np.array({text}.encode(), object).reshape({shape}))"""
_OUTPUT = 'print(result.as_numpy("{wire}"))  # {name}'

_CURL = """\
header='{header}'
{{ printf %s "$header"; {data}; }} | curl -sS --data-binary @- \\
  -H "Inference-Header-Content-Length: ${{#header}}" -H "Content-Type: application/octet-stream" \\
  http://{http}/v2/models/{name}/versions/{version}/infer
"""
_CURL_FILE = """\
bytes=$(stat -c %s {file})
header='{before}'$((bytes + 4))'{after}'
length=$(printf '\\\\x%02x' $((bytes & 255)) $((bytes >> 8 & 255)) $((bytes >> 16 & 255)) $((bytes >> 24)))
{{ printf %s "$header"; printf "$length"; cat {file}; }} | curl -sS --data-binary @- \\
  -H "Inference-Header-Content-Length: ${{#header}}" -H "Content-Type: application/octet-stream" \\
  http://{http}/v2/models/{name}/versions/{version}/infer
"""
_CURL_TEXT = """\
curl -sS -H "Content-Type: application/json" --data '{body}' \\
  http://{http}/v2/models/{name}/versions/{version}/infer
"""
_FILE = "image.jpg"
# The input of an ensemble that takes texts, and one.
_TEXT, _EXAMPLE = "TEXT", "The parcel came two days late."


@dataclass(frozen=True, slots=True, kw_only=True)
class WireTensor:
    """A tensor as clients send or get it: one row, other dynamic dims at their smallest. `name` is the spec's own.

    `filled` is numpy's function for the values of an example.
    """

    wire: str
    name: str
    triton: str
    dtype: str
    shape: tuple[int, ...]
    filled: str = "zeros"

    @property
    def bytes_command(self) -> str:
        """What prints its bytes in a shell."""
        if self.filled == "zeros":
            return f"head -c {self.size} /dev/zero"
        return "printf '" + "".join(f"\\{byte:03o}" for byte in np.ones(self.shape, self.dtype).tobytes()) + "'"

    @property
    def size(self) -> int:
        """Bytes of the tensor; 0 for texts and files, which have any."""
        if self.dtype == "string":
            return 0
        widths = {"bool": 1, "bfloat16": 2}
        width = widths.get(self.dtype) or int("".join(filter(str.isdigit, self.dtype))) // 8
        return width * math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientExample:
    """What a client of one version needs to know."""

    version: Version
    inputs: tuple[WireTensor, ...]
    outputs: tuple[WireTensor, ...]

    @classmethod
    def of(cls, version: Version) -> "ClientExample":
        """The example for a published version, from its manifest and its config."""
        spec, config = read_manifest(version).spec, parse_config(version.config.read_text())
        return cls(
            version=version,
            inputs=_tensors(config.input, spec.inputs, spec),
            outputs=_tensors(config.output, spec.outputs, spec),
        )

    def python(self, grpc: str) -> str:
        """A program that asks the server at `grpc` for one row of zeros and prints every output."""
        inputs = [
            _input_lines(tensor).format(
                wire=tensor.wire,
                shape=list(tensor.shape),
                triton=tensor.triton,
                dtype=tensor.dtype,
                name=tensor.name,
                filled=tensor.filled,
                file=_FILE,
                text=json.dumps(_EXAMPLE),
            )
            for tensor in self.inputs
        ]
        outputs = [_OUTPUT.format(wire=tensor.wire, name=tensor.name) for tensor in self.outputs]
        return _PYTHON.format(
            grpc=grpc,
            name=self.version.name,
            version=self.version.number,
            inputs="\n".join(inputs),
            outputs="\n".join(outputs),
        )

    def curl(self, http: str) -> str:
        """The same request for a shell, with the tensors as raw bytes; the answer is JSON."""
        described = [
            {
                "name": tensor.wire,
                "shape": tensor.shape,
                "datatype": tensor.triton,
                "parameters": {"binary_data_size": tensor.size},
            }
            for tensor in self.inputs
        ]
        if any(tensor.wire == _TEXT for tensor in self.inputs):
            texts = [{"name": _TEXT, "shape": self.inputs[0].shape, "datatype": "BYTES", "data": [_EXAMPLE]}]
            return _CURL_TEXT.format(
                body=json.dumps({"inputs": texts}), http=http, name=self.version.name, version=self.version.number
            )
        header = json.dumps({"inputs": described})
        if any(tensor.dtype == "string" for tensor in self.inputs):
            # The file's length is known to the shell alone, and stands before its bytes.
            before, after = header.split('"binary_data_size": 0', 1)
            return _CURL_FILE.format(
                before=f'{before}"binary_data_size": ',
                after=after,
                file=_FILE,
                http=http,
                name=self.version.name,
                version=self.version.number,
            )
        return _CURL.format(
            header=header,
            data="; ".join(tensor.bytes_command for tensor in self.inputs),
            http=http,
            name=self.version.name,
            version=self.version.number,
        )


def _input_lines(tensor: WireTensor) -> str:
    """The lines of Python that fill an input, with places for its facts."""
    if tensor.dtype != "string":
        return _INPUT
    return _TEXT_INPUT if tensor.wire == _TEXT else _FILE_INPUT


def _tensors(entries: Any, specs: tuple[TensorSpec, ...], spec: Spec) -> tuple[WireTensor, ...]:
    sizes = {dim.name: dim.minimum for dim in spec.dims} | {BATCH: 1}
    words = schema().DataType
    return tuple(
        WireTensor(
            wire=entry.name,
            name=tensor.name,
            triton=words.Name(entry.data_type).removeprefix("TYPE_").replace("STRING", "BYTES"),
            dtype=tensor.dtype,
            # A row that is a scalar has one element on the wire.
            shape=tensor.concrete(**sizes) + ((1,) if entry.HasField("reshape") else ()),
            # An empty mask leaves nothing to compute with.
            filled="ones" if tensor.mask else "zeros",
        )
        for entry, tensor in zip(entries, specs, strict=True)
    )
