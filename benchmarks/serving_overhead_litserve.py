"""LitServe serving the ONNX file of serving_overhead.py: raw float32 bytes in and out, with its batching.

Runs in the peers' own environment, never in the project's: serving_overhead.py starts it as
`python serving_overhead_litserve.py PORT MODEL THREADS MAX_BATCH COUNTERS`.
"""

import sys
from typing import Annotated

import litserve  # type: ignore[import-not-found]
import numpy as np
from fastapi import Depends, Request, Response  # type: ignore[import-not-found]
from serving_overhead_session import Session  # type: ignore[import-not-found]


async def body(request: Request) -> bytes:
    """The request's bytes as they came; LitServe's default would parse them as JSON."""
    found: bytes = await request.body()
    return found


class Api(litserve.LitAPI):  # type: ignore[misc]
    """The session behind LitServe's hooks."""

    def __init__(self, model: str, threads: int, counters: str, max_batch: int) -> None:
        # Without a timeout its loop never sleeps, and takes a core from the model. Of 1, 10 and 40 ms this gave the
        # most images per second with 16 clients: it takes several ms to take one such request from its queue.
        timeout = {"batch_timeout": 0.01} if max_batch > 1 else {}
        super().__init__(max_batch_size=max_batch, **timeout)
        self._arguments = (model, threads, counters)

    def setup(self, device: str) -> None:
        """In the worker process."""
        self._session = Session(*self._arguments)

    def decode_request(self, request: Annotated[bytes, Depends(body)]) -> np.ndarray:
        """One image."""
        found: np.ndarray = self._session.image(request)
        return found

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        """The images of a batch."""
        return np.concatenate(inputs)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The scores of a batch."""
        scores: np.ndarray = self._session.run(images)
        return scores

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        """The scores of each image."""
        return list(output)

    def encode_response(self, output: np.ndarray) -> Response:
        """The scores as bytes."""
        return Response(output.tobytes(), media_type="application/octet-stream")


def main(port: str, model: str, threads: str, max_batch: str, counters: str) -> None:
    """Serve until killed, with one worker and one API server: as many processes as the others have."""
    api = Api(model, int(threads), counters, int(max_batch))
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=int(port), num_api_servers=1, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
