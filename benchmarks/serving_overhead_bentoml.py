"""BentoML serving the ONNX file of serving_overhead.py: raw float32 bytes in and out, with its adaptive batching.

Runs in the peers' own environment, never in the project's: serving_overhead.py starts it with `bentoml serve`, and
says in environment variables what to serve.
"""

import os
from typing import Annotated, Any

import bentoml  # type: ignore[import-not-found]
import numpy as np
from bentoml.validators import ContentType  # type: ignore[import-not-found]
from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema
from serving_overhead_session import Session, image  # type: ignore[import-not-found]

MAX_BATCH = int(os.environ["PEER_MAX_BATCH"])
# A type of its own keeps the body as it came: BentoML's arrays come as JSON, its files by way of the disk.
SCHEMA = WithJsonSchema({"type": "string", "format": "binary"})
BINARY = ContentType("application/octet-stream")
Image = Annotated[Any, BeforeValidator(image), SCHEMA, BINARY]
Scores = Annotated[Any, PlainSerializer(lambda scores: scores.tobytes()), SCHEMA, BINARY]


@bentoml.service(workers=1, traffic={"timeout": 600})
class Peer:
    """The session behind BentoML's batching."""

    def __init__(self) -> None:
        self._session = Session(os.environ["PEER_MODEL"], int(os.environ["PEER_THREADS"]), os.environ["PEER_COUNTERS"])

    @bentoml.api(  # type: ignore[untyped-decorator]
        batchable=MAX_BATCH > 1, max_batch_size=max(2, MAX_BATCH), max_latency_ms=60_000
    )
    def predict(self, images: Image, /) -> Scores:
        """The scores of a batch."""
        scores: np.ndarray = self._session.run(images)
        return scores
