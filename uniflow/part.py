"""What all interchangeable parts share: they remember how they were built, so that a saved tokenizer can be rebuilt."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from abc import ABC
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn


class Part(nn.Module, ABC):
    """Base class of encoders, bottlenecks and decoders.

    A part's constructor takes plain values (numbers, strings, booleans, lists, dataclasses of them) besides the spec of
    the part before it. They are recorded as `init_args`, and `part_config` turns them into the `class_path` /
    `init_args` form that LightningCLI's YAML uses as well.
    """

    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Part:
        self = super().__new__(cls)
        # Partial: deepcopy calls __new__ without arguments and restores __dict__ afterwards.
        bound = inspect.signature(cls.__init__).bind_partial(self, *args, **kwargs)
        bound.apply_defaults()
        recorded: dict[str, Any] = {}
        for name, value in list(bound.arguments.items())[1:]:
            kind = bound.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                recorded.update(value)
            elif kind is not inspect.Parameter.VAR_POSITIONAL:
                recorded[name] = value
        object.__setattr__(self, "init_args", recorded)
        return self

    def record_defaults(self, base: type[Part]) -> None:
        """Record the defaults of `base`'s constructor for arguments that came here as `**kwargs` or not at all.

        For subclasses that hand `**kwargs` on, so that what is saved does not change when a default does.
        """
        own = inspect.signature(type(self).__init__).parameters
        for name, parameter in inspect.signature(base.__init__).parameters.items():
            if parameter.default is not inspect.Parameter.empty and name not in own:
                self.init_args.setdefault(name, parameter.default)


PartT = TypeVar("PartT", bound=Part)


def class_path(cls: type) -> str:
    """The shortest import path of `cls`: "uniflow.encoders.CLIP" where the package exports what its module defines.

    What a package exports is what it promises to keep; its modules may move.
    """
    names = cls.__module__.split(".")
    for end in range(1, len(names)):
        package = ".".join(names[:end])
        if getattr(sys.modules.get(package), cls.__qualname__, None) is cls:
            return f"{package}.{cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def part_config(part: Part) -> dict[str, Any]:
    """The `class_path` and JSON-ready `init_args` from which `build_part` makes the same architecture again."""
    return {
        "class_path": class_path(type(part)),
        "init_args": {k: _plain(v) for k, v in part.init_args.items() if not _is_spec(v)},
    }


def import_part(config: Mapping[str, Any], base: type[PartT]) -> type[PartT]:
    """The class that `config` names; nothing is instantiated.

    Raises:
        ValueError: if it cannot be imported or is no subclass of `base`.
    """
    class_path = config.get("class_path")
    if not isinstance(class_path, str) or "." not in class_path:
        raise ValueError(f"a {base.__name__} needs a class_path such as 'package.module.Class', not {class_path!r}")
    module_name, _, name = class_path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"cannot import {class_path!r} ({error}); install the package that defines this {base.__name__}"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ValueError(f"{class_path} is not a {base.__name__}")
    return cls


def build_part(config: Mapping[str, Any], base: type[PartT], *spec: Any, **overrides: Any) -> PartT:
    """Build the part that `config` describes.

    Args:
        config: `{"class_path": ..., "init_args": {...}}` as made by `part_config`.
        base: the class that the part has to be a subclass of.
        *spec: the spec of the part before it, if the constructor takes one.
        **overrides: arguments that replace those of `config`.

    Raises:
        ValueError: if the class cannot be imported, is no `base`, or does not take these arguments. Nothing is
            instantiated before the class has been checked.
    """
    cls = import_part(config, base)
    arguments = {**config.get("init_args", {}), **overrides}
    try:
        inspect.signature(cls).bind(*spec, **arguments)
    except TypeError as error:
        raise ValueError(f"{config['class_path']} does not take the arguments {sorted(arguments)}: {error}") from error
    return cls(*spec, **arguments)


def _is_spec(value: Any) -> bool:
    from uniflow.specs import EncoderSpec, LatentSpec

    return isinstance(value, EncoderSpec | LatentSpec)


def _plain(value: Any) -> Any:
    """`value` as JSON types; dataclasses become dicts, tuples lists, paths strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "__fspath__"):
        return str(value)
    raise TypeError(f"a part's arguments must be plain values to be saved, not {type(value).__name__}")
