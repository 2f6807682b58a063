"""Plain data as YAML text, for people and for other tools.

Owns the style of every YAML file that is rendered. Called by containers, kubernetes and monitoring.
"""

import yaml

# No line is folded: a folded expression is hard to read, and some tools fold it back with a space too many.
_WIDTH = 10_000


class _Plain(yaml.SafeDumper):
    """Writes what occurs twice twice, and texts of several lines as blocks: for readers, and for other tools."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _text)


def yaml_text(document: object) -> str:
    """The document with its keys in their order, no anchors, and no line folded."""
    return yaml.dump(document, Dumper=_Plain, sort_keys=False, width=_WIDTH, allow_unicode=True)
