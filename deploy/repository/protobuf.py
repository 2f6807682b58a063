"""Triton's ModelConfig protobuf as text: read, written and looked into.

Owns the one import of `tritonclient`'s generated code and the dtype words. Called by config, lint, view and promotion.
"""

from typing import Any

from deploy.errors import UsageError

TRITON_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
    "uint32": "TYPE_UINT32",
    "string": "TYPE_STRING",
}


def schema() -> Any:
    """The generated module `model_config_pb2`; gRPC, which its package imports, is loaded on the first call."""
    from tritonclient.grpc import model_config_pb2

    return model_config_pb2


def parse_config(text: str) -> Any:
    """The ModelConfig that `text` stands for. Raises UsageError if Triton could not parse it."""
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, schema().ModelConfig())
    except text_format.ParseError as error:
        raise UsageError(
            f"the model configuration cannot be parsed: {error}",
            expected="the text form of Triton's ModelConfig, known fields only",
        ) from error


def format_config(config: Any) -> str:
    """The text of a ModelConfig, proven to be read back as the same message."""
    from google.protobuf import text_format

    text: str = text_format.MessageToString(config)
    assert parse_config(text) == config
    return text


def specific_versions(config: Any) -> tuple[int, ...]:
    """The versions that a config's policy names; empty where the policy is `latest` or `all`."""
    return tuple(config.version_policy.specific.versions)
