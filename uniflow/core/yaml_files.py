"""YAML files: one loader for every file that is read, and one dumper whose output it reads back unchanged."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from uniflow.core.files import read_text

LIMIT = 10 * 2**20  # bytes of one file
DEPTH = 100  # levels of nesting
NODES = 1_000_000  # values of one file, aliases expanded

_FLOAT = re.compile(
    r"""[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
    |\.[0-9_]+(?:[eE][-+][0-9]+)?
    |[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN)""",
    re.VERBOSE,
)
_TIMESTAMP, _FLOAT_TAG = "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float"


class StrictLoader(yaml.CSafeLoader):
    """A `SafeLoader` that refuses what would be dropped in silence or would not end.

    A key that stands twice in a mapping, nesting deeper than `DEPTH`, aliases that expand to more than `NODES` values,
    and a value that contains itself are errors. Text that begins with `~/` is a path in the home directory.
    """

    def __init__(self, stream: str) -> None:
        _check_depth(stream)
        super().__init__(stream)

    def get_single_node(self) -> yaml.Node | None:
        """The document's root, checked."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """The text of a scalar, `~/` expanded."""
        return expand_home(super().construct_scalar(node))

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """A whole number; Python refuses to read one of more than 4,300 digits."""
        try:
            return super().construct_yaml_int(node)
        except ValueError as error:
            raise yaml.YAMLError(f"a number on line {node.start_mark.line + 1} is too long") from error


class ConfigLoader(StrictLoader):
    """Loads recipes and component files: 1e-4 is a number as in YAML 1.2, and a date is text."""


class _ConfigDumper(yaml.SafeDumper):
    """Puts quotes around text that `ConfigLoader` would read as something else."""


def _resolve_as_yaml_1_2(cls: Any) -> None:
    cls.yaml_implicit_resolvers = {
        letter: [(tag, pattern) for tag, pattern in pairs if tag not in (_TIMESTAMP, _FLOAT_TAG)]
        for letter, pairs in cls.yaml_implicit_resolvers.items()
    }
    cls.add_implicit_resolver(_FLOAT_TAG, re.compile(f"^(?:{_FLOAT.pattern})$", re.VERBOSE), list("-+0123456789."))


_resolve_as_yaml_1_2(ConfigLoader)
_resolve_as_yaml_1_2(_ConfigDumper)
# The constructors are looked up by tag in a table, not by name.
StrictLoader.add_constructor("tag:yaml.org,2002:int", StrictLoader.construct_yaml_int)
ConfigLoader.add_constructor("tag:yaml.org,2002:int", StrictLoader.construct_yaml_int)


def expand_home(value: Any) -> Any:
    """`value`; text that begins with `~/` with the home directory instead."""
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def read_yaml(path: Path, loader: type[StrictLoader] = ConfigLoader) -> Any:
    """The content of a YAML file.

    Args:
        path: the file.
        loader: `ConfigLoader`, or `StrictLoader` for plain YAML 1.1.

    Raises:
        OSError: if it cannot be read, is not a regular file, or is too large.
        ValueError: if it is not valid UTF-8 or YAML.
    """
    try:
        return yaml.load(read_text(path, LIMIT), loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def dump_yaml(value: Any, flow: bool = False) -> str:
    """`value` as YAML that `ConfigLoader` reads back unchanged.

    Args:
        value: plain values.
        flow: whether to write it on one line.

    Raises:
        ValueError: if it would be read back as something else.
    """
    style: dict[str, Any] = {"default_flow_style": flow, "allow_unicode": True, "sort_keys": False}
    text: str = yaml.dump(value, Dumper=_ConfigDumper, width=float("inf") if flow else 80, **style)
    if not _same(yaml.load(text, ConfigLoader), value):
        raise ValueError(f"these values cannot be written as YAML: {text[:200]!r}")
    return text


def _same(read: Any, written: Any) -> bool:
    if isinstance(written, dict):
        return (
            isinstance(read, dict) and read.keys() == written.keys() and all(_same(read[k], written[k]) for k in read)
        )
    if isinstance(written, list | tuple):
        return isinstance(read, list) and len(read) == len(written) and all(map(_same, read, written))
    return type(read) is type(written) and (read == written or (read != read and written != written))


def _check_depth(text: str) -> None:
    """Refuse deep nesting before libyaml builds it, which takes a stack frame for each level."""
    depth = 0
    for event in yaml.parse(text, yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEPTH:
            line = event.start_mark.line + 1 if event.start_mark else 0
            raise yaml.YAMLError(f"more than {DEPTH} levels of nesting, line {line}")


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """The number of values in `node`, aliases expanded; 0 in `counted` marks a node that is being counted."""
    if id(node) in counted:
        if not counted[id(node)]:
            raise yaml.YAMLError(f"a value contains itself, line {node.start_mark.line + 1}")
        return counted[id(node)]
    counted[id(node)] = 0
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _refuse_twice(node)
        children = [item for pair in node.value for item in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    total = 1 + sum(_count(child, counted) for child in children)
    if total > NODES:
        raise yaml.YAMLError(f"aliases expand to more than {NODES:,} values, line {node.start_mark.line + 1}")
    counted[id(node)] = total
    return total


def _refuse_twice(node: yaml.MappingNode) -> None:
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in seen:
                raise yaml.YAMLError(f"{key.value!r} stands twice in one mapping, line {key.start_mark.line + 1}")
            seen.add((key.tag, key.value))
