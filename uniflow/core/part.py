"""What all interchangeable parts share: they remember how they were built, so that a saved tokenizer can be rebuilt."""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from uniflow.core.errors import one_line
from uniflow.core.imports import class_path, import_part
from uniflow.core.numbers import bound_arguments, check_numbers, constructor_arguments, describe, fits
from uniflow.core.specs import ConditionSpec, EncoderSpec, LatentSpec


class Part(nn.Module, ABC):
    """Base class of encoders, bottlenecks, decoders, pixel losses, conditions and generators.

    A part's constructor takes plain values (numbers, strings, booleans, lists, dataclasses of them) besides the spec of
    the part before it. Numbers have to be in the range of their annotation (`uniflow.core.numbers`). The
    values are recorded as `init_args`, and `part_config` turns them into the `class_path` / `init_args` form that
    LightningCLI's YAML also uses.

    Attributes:
        init_args: the arguments that the part was built with, by name, defaults included.
        earlier_defaults: arguments that are new or have a new default: the values that a saved config stands for if it
            does not name them.
        entry_points: methods besides `forward` through which others use the parameters; sharding gathers them there.
    """

    init_args: dict[str, Any]
    earlier_defaults: ClassVar[Mapping[str, Any]] = {}
    entry_points: ClassVar[tuple[str, ...]] = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Part:
        recorded = bound_arguments(cls, args, kwargs)
        check_numbers(cls, recorded)
        self = super().__new__(cls)
        object.__setattr__(self, "init_args", recorded)
        return self

    def record_defaults(self, base: type[Part]) -> None:
        """Record the defaults of `base`'s constructor for arguments that came here as `**kwargs` or not at all.

        For subclasses that pass `**kwargs` on, so that what is saved does not change when a default does. Arguments
        that this class's constructor does not take are skipped.
        """
        own, taken = inspect.signature(type(self).__init__).parameters, constructor_arguments(type(self))
        for name, parameter in inspect.signature(base.__init__).parameters.items():
            if parameter.default is not inspect.Parameter.empty and name not in own and name in taken:
                self.init_args.setdefault(name, parameter.default)

    def record_resolved(self, **values: Any) -> None:
        """Record what arguments that may be null stand for, so that what is saved does not change when a default does.

        Arguments that this class's constructor does not take are skipped.
        """
        taken = constructor_arguments(type(self))
        self.init_args |= {name: value for name, value in values.items() if name in taken}

    @classmethod
    def plain_state(
        cls, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Arguments and tensors to save for a trained part: both unchanged, unless a subclass saves a simpler part.

        A class method: a checkpoint is made plain before its parts are built.

        Args:
            arguments: the part's `init_args` as plain values, from a file that may hold anything.
            tensors: its state dict; not changed.

        Returns:
            Arguments and state dict of a part that computes the same.

        Raises:
            ValueError: if the two do not fit together.
        """
        return dict(arguments), dict(tensors)

    def check_shardable(self) -> None:
        """Do nothing if FSDP2 can shard the part, as by default; override this if it cannot.

        Raises:
            ValueError: saying why not, and what to set instead.
        """


PartT = TypeVar("PartT", bound=Part)


def part_config(part: Part) -> dict[str, Any]:
    """The `class_path` and JSON-ready `init_args` from which `build_part` makes the same architecture again."""
    cls = own_class(part)
    # In the order of the constructor, however they came to be recorded: equal parts have equal files.
    order = {name: position for position, name in enumerate(constructor_arguments(cls))}
    arguments = sorted(part.init_args.items(), key=lambda item: order.get(item[0], len(order)))
    return {
        "class_path": class_path(cls),
        "init_args": {name: _plain(value) for name, value in arguments if not _is_spec(value)},
    }


def own_class(part: nn.Module) -> type:
    """The class that a part was made from; sharding replaces it by a subclass."""
    return next(c for c in type(part).__mro__ if not any(b.__name__ == "FSDPModule" for b in (c, *c.__bases__)))


def build_part(config: Mapping[str, Any], base: type[PartT], *spec: Any, **overrides: Any) -> PartT:
    """Build the part that `config` describes.

    Args:
        config: `{"class_path": ..., "init_args": {...}}` as made by `part_config`. Arguments that it lacks, as configs
            saved by earlier versions do, get the values of the class's `earlier_defaults`, and else their defaults.
        base: the class that the part has to be a subclass of.
        *spec: the spec of the part before it, if the constructor takes one.
        **overrides: arguments that replace those of `config`.

    Raises:
        ValueError: if the class cannot be imported, is not a `base`, or does not take these arguments. Nothing is
            instantiated before the class has been checked.
    """
    cls, given = import_part(config, base), config.get("init_args", {})
    path = config["class_path"]
    if not isinstance(given, Mapping):
        raise ValueError(f"the init_args of {path} must be a JSON object, not {type(given).__name__}")
    known = constructor_arguments(cls)
    arguments = {**{name: value for name, value in cls.earlier_defaults.items() if name in known}, **given, **overrides}
    try:
        inspect.signature(cls.__init__).bind(None, *spec, **arguments)
    except TypeError as error:
        raise ValueError(f"{path} does not take the arguments {sorted(arguments)}: {error}") from error
    _check_types(known, arguments, path)
    try:
        return cls(*spec, **arguments)
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:  # a constructor may raise anything for values it was not made for
        raise ValueError(f"{path} cannot be built with its init_args: {one_line(error, 400)}") from error


def _check_types(known: Mapping[str, tuple[inspect.Parameter, Any]], arguments: Mapping[str, Any], path: str) -> None:
    """Refuse values of a wrong type. Constructors do not check them: usually the command line's parser does."""
    for name, value in arguments.items():
        parameter, hint = known.get(name, (None, Any))
        if not fits(value, hint) and not (parameter is not None and value == parameter.default):
            raise ValueError(f"{path}: {name} must be {describe(hint)}, not {value!r}")


def _is_spec(value: Any) -> bool:
    return isinstance(value, ConditionSpec | EncoderSpec | LatentSpec)


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
