"""Every import of a package, read from its source without running it: those inside functions too.

Owns the walk and the search for cycles. Called by test_structure.
"""

import ast
from pathlib import Path

Graph = dict[str, set[str]]


def import_graph(package: Path) -> Graph:
    """The modules of `package` by dotted name, each with the modules of the same package that it imports."""
    modules = {_dotted(path, package.parent): path for path in package.rglob("*.py")}
    return {name: _imported(path, name, set(modules)) - {name} for name, path in modules.items()}


def room(module: str) -> str:
    """The room a module belongs to: the second part of its dotted name, empty for the package itself."""
    return [*module.split("."), ""][1]


def downward(graph: Graph, order: dict[str, int]) -> list[str]:
    """The imports that point to a room further down than their own, as `a -> b`."""
    return sorted(
        f"{source} -> {target}"
        for source, targets in graph.items()
        for target in targets
        if room(source) and room(target) and order[room(target)] > order[room(source)]
    )


def find_cycle(graph: Graph) -> list[str]:
    """The modules of one import cycle, in order; empty where there is none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for target in sorted(graph[name]):
            if cycle := visit(target, [*path, name]):
                return cycle
        done.add(name)
        return []

    return next((cycle for name in sorted(graph) if (cycle := visit(name, []))), [])


def _dotted(path: Path, base: Path) -> str:
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path, name: str, modules: set[str]) -> set[str]:
    """The known modules that a file imports; importing `a.b` is not counted as importing `a`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, name, is_package=path.name == "__init__.py")
            submodules = {f"{base}.{alias.name}" for alias in node.names}
            found |= (submodules & modules) or {base}
    return found & modules


def _base(node: ast.ImportFrom, name: str, *, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = name.split(".")
    kept = parts[: len(parts) - node.level + is_package]
    return ".".join((*kept, node.module) if node.module else kept)
