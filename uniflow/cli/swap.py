"""Class swaps in configurations: what jsonargparse 4 keeps of the class before, and this package does not.

jsonargparse merges settings argument by argument. When a later file or option names another class, it keeps every old
argument that the new class accepts too, silently. Here a slot follows two rules instead, at every depth and for parts,
optimizers, data modules and callbacks alike:

- another class, or a component file (even of the same class), starts the slot afresh;
- arguments without a class, and the same class named again, change only what they name.

And `null` stays null: in an argument of a part it arrived as the text "None". Old short names of classes keep working.

jsonargparse 4.53 has no public setting for any of this, so five of its private functions are wrapped. pyproject.toml
therefore pins its minor version, `uniflow.cli.supported` checks it, and `tests/cli/test_swap.py` guards each function.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from pathlib import Path
from typing import Any, get_args

from jsonargparse import Namespace, _typehints
from jsonargparse._typehints import ActionTypeHint, NestedArg, get_subclass_types

from uniflow.cli.candidates import function_problem, value_problem
from uniflow.cli.errors import UserError
from uniflow.cli.shipped import find_component
from uniflow.cli.supported import unsupported
from uniflow.core.moved import RENAMED
from uniflow.core.yaml_files import dump_yaml, read_yaml

COMPONENT_SUFFIXES = (".yaml", ".yml", ".json")

_original_discard = _typehints.discard_init_args_on_class_path_change
_original_call = ActionTypeHint.__call__
_original_check_type = ActionTypeHint._check_type
_original_parse_value = _typehints.parse_value_or_config
_original_resolve = _typehints.resolve_class_path_by_name

# Parameters of the wrapped functions in jsonargparse 4.53. Other ones mean that the functions work differently.
_EXPECTED = {
    "discard_init_args_on_class_path_change": ["parser_or_action", "prev_val", "value"],
    "_check_type": ["self", "value", "append", "cfg", "mode"],
    "parse_value_or_config": ["value", "enable_path", "simple_types"],
    "resolve_class_path_by_name": ["cls", "name"],
}
_FOUND = {
    function.__name__: list(inspect.signature(function).parameters)
    for function in (_original_discard, _original_check_type, _original_parse_value, _original_resolve)
}


def install() -> None:
    """Replace jsonargparse's rules by these. Idempotent.

    Raises:
        UserError: if the wrapped functions of the installed jsonargparse take other parameters than expected.
    """
    if _FOUND != _EXPECTED:
        raise unsupported()
    _typehints.discard_init_args_on_class_path_change = _discard
    ActionTypeHint.__call__ = _call  # type: ignore[method-assign]
    ActionTypeHint._check_type = _check_type  # type: ignore[method-assign]
    _typehints.parse_value_or_config = _parse_value
    _typehints.resolve_class_path_by_name = _resolve


def _discard(parser_or_action: Any, previous: Any, value: Any) -> None:
    """Replaces jsonargparse's function of this purpose: forget all of the old arguments, not only the invalid ones."""
    if not previous or previous.get("class_path") is None:
        return
    # jsonargparse marks what was read from a file of its own with __path__.
    if previous["class_path"] != value["class_path"] or value.get("__path__") is not None:
        for key in ("init_args", "dict_kwargs"):
            previous.pop(key, None)


def _call(self: ActionTypeHint, *args: Any, **kwargs: Any) -> Any:
    """An option of the command line: if it names a component file, it empties the slot and passes the content on.

    Passing the content rather than the path also avoids jsonargparse's false "Config file loop detected" when an
    argument of the component follows.
    """
    if len(args) == 4:
        parser, config, value, option = args
        value = _shipped(value, option or self.dest)
        component = None if _is_path(self._typehint) else read_component(value)
        if component is not None:
            _empty_slot(config, option)
            args = (parser, config, dump_yaml(component, flow=True), option)
    return _original_call(self, *args, **kwargs)


def _check_type(self: ActionTypeHint, value: Any, append: bool = False, cfg: Any = None, mode: Any = None) -> Any:
    """A value from a file or an option: a component file does not see what was in its slot; class names get help."""
    if isinstance(value, str) and get_subclass_types(self._typehint, callable_return=True):
        value = _shipped(value, self.dest)
    in_slot = isinstance(cfg, Namespace) and self.dest in cfg and not _is_path(self._typehint)
    if in_slot and read_component(value) is not None:
        cfg = cfg.clone()
        cfg.pop(self.dest)
    try:
        checked = _original_check_type(self, value, append=append, cfg=cfg, mode=mode)
    except OverflowError as error:
        raise TypeError(f'Parser key "{self.dest}": the number has too many digits') from error
    except TypeError as error:
        # Of an argument further down, its own parser has said what is wrong.
        problem = None if isinstance(value, NestedArg) else value_problem(value, self._typehint)
        if problem is None or set(re.findall(r'Parser key "([^"]+)"', str(error))) - {self.dest}:
            raise
        raise TypeError(f'Parser key "{self.dest}": {problem}') from error
    problem = function_problem(checked, self._typehint)
    if problem is None and isinstance(value, str) and inspect.isroutine(checked):
        problem = function_problem(value, self._typehint)
    if problem is not None:
        raise TypeError(f'Parser key "{self.dest}": {problem}')
    return checked


def _parse_value(value: Any, *args: Any, **kwargs: Any) -> Any:
    """The value of an option two or more levels down, which jsonargparse formats again for the parser of each level."""
    parsed, path = _original_parse_value(value, *args, **kwargs)
    if isinstance(parsed, NestedArg) and "." in parsed.key and not isinstance(parsed.val, str):
        parsed = NestedArg(key=parsed.key, val=json.dumps(parsed.val))
    return parsed, path


def _resolve(cls: Any, name: str) -> str:
    """The class path of a short name; if there is no such class, that of the name it has now."""
    path = _original_resolve(cls, name)
    return _original_resolve(cls, RENAMED[name]) if path in RENAMED else path


def _is_path(hint: Any) -> bool:
    """Whether an option names a file for the tool itself, whose content is not a component's, and may be large."""
    return hint is Path or Path in get_args(hint)


def read_component(value: Any) -> dict[str, Any] | None:
    """The content of a component file (`class_path` at its top), or None if `value` is not the path of one."""
    if not isinstance(value, str) or not value.endswith(COMPONENT_SUFFIXES) or not os.path.isfile(value):
        return None
    try:
        content = read_yaml(Path(value))
    except ValueError as error:
        raise TypeError(str(error)) from error
    except OSError as error:
        raise UserError(str(error)) from error
    if not isinstance(content, dict) or "class_path" not in content:
        return None
    if not isinstance(content.get("init_args") or {}, dict):
        raise TypeError(f"{value}: init_args must map arguments to values")
    return content


def _shipped(value: Any, slot: str) -> Any:
    """`value`; the path of the shipped component file if it names one and is not a file itself."""
    if not isinstance(value, str) or os.path.exists(value):
        return value
    file = find_component(value, slot)
    return value if file is None else str(file)


def _empty_slot(config: Namespace, option: str) -> None:
    """Remove from `config` what the slot `option` (such as "--model.encoder") holds."""
    node: Any = config
    names = [name for name in option.removeprefix("--").split(".") if name != "init_args"]
    for name in names[:-1]:
        node = node.get(name)
        if isinstance(node, Namespace) and "class_path" in node:
            node = node.get("init_args")
        if not isinstance(node, Namespace):
            return
    node.pop(names[-1], None)
