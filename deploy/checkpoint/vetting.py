"""A `.pt2` of `torch.export.save` is looked through before torch loads it, since loading one can run code.

Owns what such an archive may hold: a graph of PyTorch operators, sizes as formulas, tensors. Loads nothing by itself.
Called by program. What torch would do with the rest: unpickle custom objects and sample inputs, evaluate formulas as
Python, and look any attribute of the module `torch` up as an operator.
"""

import ast
import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.checkpoint.pickles import load_plain
from deploy.checkpoint.sniff import damaged
from deploy.errors import UsageError

GRAPH = "models/model.json"
_OPERATORS = re.compile(r"torch\.ops\.(?!load_library|import_module)[a-zA-Z]\w*\.[a-zA-Z_]\w*(\.\w+)?")
_ARITHMETIC = re.compile(
    r"(_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.(trunc|ceil|floor|sqrt)|torch\.(sym_\w+|_sym_\w+))"
)
_SYMBOL = re.compile(r"\w{1,40}")
_NUMBER = re.compile(r"[-+]?[\w.]{1,60}")
_FUNCTIONS = frozenset((
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Abs", "floor", "ceiling", "Piecewise",
    "Equality", "Unequality", "StrictGreaterThan", "GreaterThan", "StrictLessThan", "LessThan", "Eq", "Ne", "Gt", "Ge",
    "Lt", "Le", "And", "Or", "Not", "ExprCondPair", "FloorDiv", "ModularIndexing", "Mod", "PythonMod", "CleanDiv",
    "CeilToInt", "FloorToInt", "IntTrueDiv", "FloatTrueDiv", "TruncToInt", "TruncToFloat", "RoundToInt", "RoundDecimal",
    "ToFloat", "PowByNatural", "FloatPow", "Where", "Identity",
))  # fmt: skip
_ARITHMETIC_NODES = (
    ast.Expression, ast.Load, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Compare, ast.cmpop,
)  # fmt: skip


def vet(path: Path) -> None:
    """Raises UsageError for whatever would be more than data, naming it, and where the archive is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {name.partition("/")[2]: name for name in archive.namelist()}
            _vet_graph(path, json.loads(archive.read(entries[GRAPH])))
            for name in _pickled(archive, entries):
                _vet_pickle(path, name, archive.read(entries[name]))
    except (zipfile.BadZipFile, KeyError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error


def _vet_graph(path: Path, graph: Any) -> None:
    for key, value in _strings(graph):
        if key == "target" and not (_OPERATORS.fullmatch(value) or _ARITHMETIC.fullmatch(value)):
            raise _refused(path, f"its graph calls {value!r}", "operators of PyTorch's registry")
        if key == "expr_str" and not _is_formula(value):
            raise _refused(path, f"it gives a size as {value[:60]!r}", "a formula of sizes")


def _strings(value: Any) -> Iterator[tuple[str, str]]:
    """Every string below `value` that has a key."""
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, str):
                yield key, item
            else:
                yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _is_formula(text: str) -> bool:
    """Whether the text, read as Python, only calls the functions of formulas on symbols and numbers."""
    try:
        return all(_is_part(node) for node in ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_part(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        literal = isinstance(node.func, ast.Name) and {"Symbol": _SYMBOL, "Float": _NUMBER}.get(node.func.id)
        texts = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        return (
            isinstance(node.func, ast.Name)
            and node.func.id in _FUNCTIONS
            and all(literal and literal.fullmatch(text) for text in texts)
        )
    if isinstance(node, ast.keyword):
        return isinstance(node.value, ast.Constant) and not isinstance(node.value.value, str)
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS or bool(re.fullmatch(r"z?[suf]+\d+|oo|int_oo|true|false", node.id))
    # Text is looked at where it is given to a function: anything else with text in it is refused there or is no call.
    return isinstance(node, (ast.Constant, *_ARITHMETIC_NODES))


def _pickled(archive: zipfile.ZipFile, entries: dict[str, str]) -> Iterator[str]:
    """The entries that torch would unpickle: sample inputs, old weights, and those whose table says so."""
    for name, full in entries.items():
        folder, _, last = name.rpartition("/")
        if not folder.startswith("data/"):
            continue
        if last.endswith((".pt", ".pth")) or last.startswith(("custom_obj", "opaque_obj")):
            yield name
        elif last.endswith("_config.json"):
            table = json.loads(archive.read(full))["config"]
            yield from (f"{folder}/{item['path_name']}" for item in table.values() if item.get("use_pickle"))


def _vet_pickle(path: Path, name: str, data: bytes) -> None:
    try:
        load_plain(io.BytesIO(data))
    except pickle.UnpicklingError as error:
        raise _refused(path, f"its {name} is a pickle that needs other types than tensors do", "tensors") from error
    except Exception as error:  # the reader raises whatever a damaged pickle leads it to
        if name.rpartition("/")[2].startswith(("custom_obj", "opaque_obj")):
            raise _refused(path, f"its {name} is an object of a class of its own", "tensors") from error
        raise damaged(path, error) from error


def _refused(path: Path, what: str, expected: str) -> UsageError:
    return UsageError(
        f"{path} is a program that could run any code when it is loaded: {what}",
        expected=expected,
        fix="export it again without that; or, if you trust who wrote the file, add --trust-pickle",
    )
