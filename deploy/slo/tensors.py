"""Arrays as they go over the wire: their dtype in Triton's words, and their bytes.

Owns what NumPy has no dtype for: bfloat16, and files or texts of any length. Called by question and wire.
"""

import numpy as np

BFLOAT16 = np.dtype("V2")
"""What an array of bfloat16 is here: two bytes a number."""


def as_bfloat16(array: np.ndarray) -> np.ndarray:
    """The values of a float32 array rounded to bfloat16, ties to even, as two bytes each."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    # A NaN stays one: rounding could carry it over the end.
    return np.where(np.isnan(array), np.uint16(0x7FC0), rounded).astype("<u2").view(BFLOAT16)


def datatype(array: np.ndarray) -> str:
    """The dtype of a tensor in Triton's words."""
    from tritonclient.utils import np_to_triton_dtype

    return "BF16" if array.dtype == BFLOAT16 else str(np_to_triton_dtype(array.dtype))


def as_bytes(array: np.ndarray) -> bytes:
    """The bytes of a tensor on the wire: rows of numbers, or files each after its length."""
    if array.dtype != object:
        return np.ascontiguousarray(array).tobytes()
    return b"".join(len(file).to_bytes(4, "little") + file for file in array.reshape(-1))
