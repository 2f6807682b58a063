"""deployctl: from a fine-tuned PyTorch checkpoint to a proven, servable Triton model version.

Importing this package imports nothing heavy; the rooms below it are imported where they are used.
"""

import os

__version__ = "0.1.0"

# From 1.29 on ONNX Runtime reports to its vendor: the model's file name, digests of its weights, the machine.
# It looks once, as a process makes its first session; children and servers inherit what stands here.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
