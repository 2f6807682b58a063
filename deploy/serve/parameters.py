"""The config parameters by which the local engine's view talks to its python-based backends.

Owns the names only, so that the stub process need not import anything heavier.
"""

DIGEST_PARAMETER = "deployctl_sha256:"
# What the backend vllm is told, as JSON: which Python runs its engine, with what, and the digests to check before.
ENGINE_PARAMETER = "deployctl_vllm"
# Where the runtime computes: "cuda", or absent for the CPU. The core itself sees an instance on CPU either way.
DEVICE_PARAMETER = "deployctl_device"
