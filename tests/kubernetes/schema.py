"""Whether an object fits its schema at a version of Kubernetes: Kubernetes' own kinds, and custom resources.

Owns the look-up. What Kubernetes defines comes from kubernetes-validate, custom resources from schemas.json
(`scripts/write_schemas.py`), and a kind that neither knows is an error: nobody could say whether it is right.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import referencing
from kubernetes_validate.utils import schema_contents

OLDEST, NEWEST = "1.25", kubernetes_validate.latest_version().rpartition(".")[0]
IMAGE_VOLUMES_SINCE = "1.31"
_SCHEMAS = Path(__file__).with_name("schemas.json")
_REFERENCE = "kubernetes:"


class Misfit(AssertionError):  # noqa: N818 - named for what is the matter
    """An object that its schema does not take, with the place and the reason."""


def check(document: dict[str, Any], version: str) -> None:
    """Raises Misfit if the object does not fit its schema, or nobody knows its kind."""
    kind = f"{document['apiVersion']}/{document['kind']}"
    try:
        if kind in _custom()["kinds"]:
            _validator(kind, version).validate(document)
        else:
            kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        raise Misfit(f"{kind} is no kind that Kubernetes {version} or schemas.json knows") from error
    except jsonschema.ValidationError as error:
        place = ".".join(map(str, error.absolute_path))
        raise Misfit(f"{kind} at {place}: {error.message}") from error


@cache
def _custom() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_SCHEMAS.read_text())
    return found


@cache
def _validator(kind: str, version: str) -> Any:
    definitions = schema_contents(f"kubernetes-json-schema/v{version}.0-local-strict/_definitions.json", version)
    own = _linked(_custom()["definitions"], definitions["$id"])
    name = _custom()["kinds"][kind]
    schema = {"$schema": definitions["$schema"], "$ref": f"#/definitions/{name}", "definitions": own}
    registry: referencing.Registry[Any] = referencing.Resource.from_contents(definitions) @ referencing.Registry()
    return jsonschema.Draft202012Validator(schema, registry=registry)


def _linked(schema: Any, definitions: str) -> Any:
    """The schema with its references to Kubernetes' definitions as the registry finds them."""
    if isinstance(schema, list):
        return [_linked(value, definitions) for value in schema]
    if not isinstance(schema, dict):
        return schema
    linked = {key: _linked(value, definitions) for key, value in schema.items()}
    target = linked.get("$ref")
    if isinstance(target, str) and target.startswith(_REFERENCE):
        linked["$ref"] = f"{definitions}#/$defs/{target.removeprefix(_REFERENCE)}"
    return linked
