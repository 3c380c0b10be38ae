"""YAML whose mappings know their lines, for messages that say where to look."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from warploom.core.errors import ArgumentError

__all__ = ["LinedMapping", "read_lined"]


class LinedMapping(dict[str, Any]):
    """A mapping of a YAML file that knows the file, its own line and the line of each key."""

    source: str
    line: int
    lines: dict[str, int]

    def error(self, field: str, expected: str, got: object, hint: str = "") -> ArgumentError:
        """An error about one field of this mapping."""
        return ArgumentError.of(f"{self.source}:{self.lines.get(field, self.line)}", field, expected, got, hint)

    def require_keys(self, required: Mapping[str, type], optional: Mapping[str, type] | None = None) -> None:
        """Check that all required keys are there, of their types, and no unknown ones.

        Raises
        ------
        ArgumentError
            With file, line and field.
        """
        allowed = {**required, **(optional or {})}
        for key, value in self.items():
            if key not in allowed:
                near = difflib.get_close_matches(key, allowed, n=1)
                raise self.error(
                    key, f"one of {', '.join(allowed)}", "an unknown field", f"Did you mean {near[0]}?" if near else ""
                )
            # True is an int in Python, never in a table.
            if not isinstance(value, allowed[key]) or (isinstance(value, bool) and allowed[key] is not bool):
                raise self.error(key, _TYPE_NAMES.get(allowed[key], allowed[key].__name__), repr(value))
        for key in required:
            if key not in self:
                raise self.error(key, "given", "nothing", f"Add it to the mapping at line {self.line}.")


_TYPE_NAMES = {
    dict: "a mapping",
    list: "a list",
    str: "text (quote it)",
    int: "an integer",
    float: "a number",
    bool: "true or false",
}


def read_lined(path: Path, source: str = "") -> LinedMapping:
    """Read a YAML file that holds a mapping; its mappings are `LinedMapping`.

    Dates stay text, and a repeated key is an error instead of a silent loss.

    Raises
    ------
    ArgumentError
        The file can't be read, is not YAML, or holds something else than a mapping.
    """
    import yaml

    source = source or str(path)

    class Loader(yaml.SafeLoader):
        """The safe loader: plain data only, no objects."""

    def construct_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> LinedMapping:
        found = LinedMapping()
        found.source, found.line, found.lines = source, node.start_mark.line + 1, {}
        for key_node, value_node in node.value:
            key, line = loader.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ArgumentError.of(f"{source}:{line}", "key", "text", repr(key), "Quote it.")
            if key in found:
                raise ArgumentError.of(
                    f"{source}:{line}", key, "given once", f"a second one (first at line {found.lines[key]})"
                )
            found.lines[key] = line
            found[key] = loader.construct_object(value_node, deep=True)
        return found

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, construct_mapping)
    Loader.add_constructor("tag:yaml.org,2002:timestamp", yaml.SafeLoader.construct_yaml_str)  # type: ignore[type-var]
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{source}: cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ArgumentError(f"{source}{line}: not YAML: {getattr(error, 'problem', error)}.") from error
    if not isinstance(document, LinedMapping):
        raise ArgumentError.of(source, "document", "a mapping", type(document).__name__)
    return document
