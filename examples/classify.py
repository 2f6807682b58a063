"""Ask a running Triton what the held-out digits are, and compare its answers with the truth.

Owns a client that needs nothing of deployctl: tritonclient, numpy and the preprocessing of `digits.py`.
Run it by hand or through `make demo`: `python examples/classify.py --url localhost:8001 --model digits_resnet18`.
"""

import argparse
import sys
import time

import numpy as np
import tritonclient.grpc as triton
from digits import CLASSES, load_split, preprocess
from tritonclient.utils import InferenceServerException

SHOWN = 10


def main() -> int:
    """Classify all held-out images and print a table; 1 where the accuracy misses `--min-accuracy`."""
    arguments = _arguments()
    client = triton.InferenceServerClient(arguments.url)
    wait_until_ready(client, arguments.model, arguments.wait)
    _, held_out = load_split(arguments.seed)
    predicted = classify(client, arguments.model, preprocess(held_out.images))
    truth = [CLASSES[label] for label in held_out.labels]
    print(f"{'image':>5}  {'truth':<6} {'served':<6}")
    for number, (true, served) in enumerate(zip(truth[:SHOWN], predicted, strict=False)):
        print(f"{number:>5}  {true:<6} {served:<6} {'' if served == true else '<- wrong'}".rstrip())
    accuracy = sum(map(str.__eq__, truth, predicted)) / len(truth)
    print(f"served accuracy: {accuracy:.1%} on {len(truth)} held-out images")
    return 0 if accuracy >= arguments.min_accuracy else 1


def wait_until_ready(client: triton.InferenceServerClient, model: str, seconds: float) -> None:
    """Return once the server serves the model. Ends the program if it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if client.is_model_ready(model):
                return
            reason = f"the server is up but does not serve {model}"
        except InferenceServerException as error:
            reason = str(error.message())
        if time.monotonic() > deadline:
            raise SystemExit(f"no answer within {seconds:g} s: {reason}")
        time.sleep(0.5)


def classify(client: triton.InferenceServerClient, model: str, images: np.ndarray) -> list[str]:
    """The label the server gives each of `images` (float32 [n, 3, H, W]), asked in batches it accepts."""
    metadata = client.get_model_metadata(model)
    batch = max(1, client.get_model_config(model).config.max_batch_size)
    source, output = metadata.inputs[0], metadata.outputs[0].name
    labels = []
    for start in range(0, len(images), batch):
        rows = images[start : start + batch]
        tensor = triton.InferInput(source.name, list(rows.shape), source.datatype)
        tensor.set_data_from_numpy(rows)
        # With class_count the server itself takes the argmax and looks the name up in the model's label file.
        wanted = triton.InferRequestedOutput(output, class_count=1)
        answers = client.infer(model, [tensor], outputs=[wanted]).as_numpy(output)
        labels += [answer.decode().split(":")[2] for answer in answers.reshape(-1)]
    return labels


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Classify held-out digits with a running Triton.")
    parser.add_argument("--url", default="localhost:8001", help="HOST:PORT of the server's gRPC endpoint")
    parser.add_argument("--model", default="digits_resnet18")
    parser.add_argument("--wait", type=float, default=60.0, help="seconds to wait for the server")
    parser.add_argument("--min-accuracy", type=float, default=0.9, help="end with 1 below this share")
    parser.add_argument("--seed", type=int, default=0, help="the seed the network was trained with")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
