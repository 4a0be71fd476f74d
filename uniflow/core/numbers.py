"""Numbers with a range: annotations that the command line, `--help` and constructors called from Python all check."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from jsonargparse.typing import register_type

MOST_STEPS = 10_000  # of a sampler


class _Named(type):
    """Classes that `--help` shows by their name alone."""

    def __repr__(cls) -> str:
        return cls.__name__


class RangedNumber(metaclass=_Named):
    """Base of the annotations below. They are never instantiated: values are plain numbers.

    Attributes:
        kind: `int` or `float`.
        text: the range in words, as in "must be an integer >= 1".
        contains: whether a finite number is in the range.
    """

    kind: ClassVar[type]
    text: ClassVar[str]
    contains: ClassVar[Callable[[float], bool]]

    @classmethod
    def accepts(cls, value: Any) -> bool:
        """Whether `value` is a finite number of this kind in this range."""
        return is_number(value, cls.kind) and cls.contains(value)

    @classmethod
    def parse(cls, value: Any) -> Any:
        """A value of the command line or of a config as a plain number.

        Raises:
            ValueError: if it is not in the range.
        """
        try:
            number = cls.kind(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if not cls.accepts(number):
            raise ValueError(f"must be {cls.text}, got {value}")
        return cls.kind(number)


def is_number(value: Any, kind: type) -> bool:
    """Whether `value` is a finite number of the kind `int` or `float`; integers are both, booleans neither."""
    wanted = numbers.Integral if kind is int else numbers.Real
    return isinstance(value, wanted) and not isinstance(value, bool) and math.isfinite(value)


def ranged(name: str, kind: type, text: str, contains: Callable[[float], bool]) -> Any:
    """A new annotation.

    Args:
        name: as `--help` shows it.
        kind: `int` or `float`.
        text: the range in words.
        contains: whether a finite number is in the range.
    """
    number = _Named(name, (RangedNumber,), {"kind": kind, "text": text, "contains": staticmethod(contains)})
    register_type(
        number,
        serializer=kind,
        deserializer=number.parse,  # type: ignore[attr-defined]
        deserializer_exceptions=(),
        type_check=lambda value, cls: type(value) is cls.kind and cls.accepts(value),
    )
    return number


if TYPE_CHECKING:
    PositiveInt = int
    NonNegativeInt = int
    SamplerSteps = int
    Int2 = int
    FiniteFloat = float
    PositiveFloat = float
    NonNegativeFloat = float
    UnitFloat = float
    UnitFloatBelow1 = float
    PositiveUnitFloat = float
    CosineFloat = float
    PercentFloat = float
else:
    PositiveInt = ranged("int >= 1", int, "an integer >= 1", lambda x: x >= 1)
    NonNegativeInt = ranged("int >= 0", int, "an integer >= 0", lambda x: x >= 0)
    SamplerSteps = ranged(
        "int in [1, 10000]", int, f"an integer from 1 to {MOST_STEPS:,}", lambda x: 1 <= x <= MOST_STEPS
    )
    Int2 = ranged("int >= 2", int, "an integer >= 2", lambda x: x >= 2)
    FiniteFloat = ranged("finite float", float, "a finite number", lambda x: True)
    PositiveFloat = ranged("float > 0", float, "a finite number > 0", lambda x: x > 0)
    NonNegativeFloat = ranged("float >= 0", float, "a finite number >= 0", lambda x: x >= 0)
    UnitFloat = ranged("float in [0, 1]", float, "a number in [0, 1]", lambda x: 0 <= x <= 1)
    UnitFloatBelow1 = ranged("float in [0, 1)", float, "a number in [0, 1)", lambda x: 0 <= x < 1)
    PositiveUnitFloat = ranged("float in (0, 1]", float, "a number in (0, 1]", lambda x: 0 < x <= 1)
    CosineFloat = ranged("float in [-1, 1]", float, "a number in [-1, 1]", lambda x: -1 <= x <= 1)
    PercentFloat = ranged("float in [0, 100]", float, "a number in [0, 100]", lambda x: 0 <= x <= 100)


def check_ranges(owner: str, numbers: Mapping[str, tuple[float, float, float]]) -> None:
    """Refuse numbers outside of a range, where a type alone would not say enough.

    Args:
        owner: whose numbers they are, for the message.
        numbers: by name, the number, the least and the most that it may be.

    Raises:
        ValueError: naming owner, number, value and the end of the range that it is beyond.
    """
    for name, (value, least, most) in numbers.items():
        if value < least:
            raise ValueError(f"{owner}: {name} must be at least {least}, not {value}")
        if value > most:
            raise ValueError(f"{owner}: {name} must be at most {most:,}, not {value}")


class CheckedNumbers:
    """Base class whose constructor refuses numbers outside the range of their annotation.

    Only arguments whose annotation names a number are looked at. A plain `float` means a finite one.

    Raises:
        ValueError: naming class, argument, range and value.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        check_numbers(cls, bound_arguments(cls, args, kwargs))
        return super().__new__(cls)


def bound_arguments(cls: type, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of `cls`, by name, defaults and those in `**kwargs` included."""
    constructor = cls.__init__  # type: ignore[misc]
    # Partial: deepcopy calls __new__ without arguments and restores __dict__ afterwards.
    bound = inspect.signature(constructor).bind_partial(None, *args, **kwargs)
    bound.apply_defaults()
    arguments: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(value)
        elif kind is not inspect.Parameter.VAR_POSITIONAL:
            arguments[name] = value
    return arguments


def check_numbers(cls: type, arguments: Mapping[str, Any]) -> None:
    """Refuse numbers outside the range that the constructor of `cls` declares.

    Raises:
        ValueError: naming class, argument, range and value.
    """
    known = constructor_arguments(cls)
    for name, value in arguments.items():
        parameter, hint = known.get(name, (None, Any))
        if parameter is None or value is parameter.default or not _has_number(hint):
            continue
        if not fits(value, hint):
            raise ValueError(f"{cls.__name__}.{name} must be {describe(hint)}, got {value!r}")


@functools.cache
def constructor_arguments(cls: type) -> Mapping[str, tuple[inspect.Parameter, Any]]:
    """The arguments of a constructor and of those that it passes `**kwargs` on to: name -> parameter, type."""
    arguments: dict[str, tuple[inspect.Parameter, Any]] = {}
    for constructor in [vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)]:
        try:
            hints = typing.get_type_hints(constructor)
        except NameError:  # names that only a type checker sees
            hints = {}
        parameters = inspect.signature(constructor).parameters
        for name, parameter in parameters.items():
            arguments.setdefault(name, (parameter, hints.get(name, Any)))
        if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            break
    return types.MappingProxyType(arguments)


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is one of the type `hint`; True for hints of other than plain values."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, choice) for choice in inner)
    if origin is typing.Literal:
        return value in inner
    if _is_ranged(hint):
        return hint.accepts(value)
    if hint in (int, float):
        return is_number(value, hint)
    if hint in (bool, str, type(None)):
        return isinstance(value, hint) or (hint is bool and value in (0, 1))
    if origin in (list, tuple, Sequence):
        fixed = origin is tuple and inner[-1] is not Ellipsis
        if not isinstance(value, list | tuple) or (fixed and len(value) != len(inner)):
            return False
        return all(fits(item, inner[position if fixed else 0]) for position, item in enumerate(value))
    # A number is an instance of no other class, such as Schedule in `float | Schedule`.
    return hint in (Any, object) or not (isinstance(hint, type) and is_number_like(value))


def is_number_like(value: Any) -> bool:
    """Whether `value` is a number, finite or not, and no boolean."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def describe(hint: Any) -> str:
    """A type in words, for "must be ..."."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(choice) for choice in inner)
    if origin is typing.Literal:
        return " or ".join(map(repr, inner))
    if _is_ranged(hint):
        return hint.text
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"{len(inner)} values, each {describe(inner[0])}"
    if origin in (list, tuple, Sequence):
        return f"a list of values, each {describe(inner[0])}"
    words = {int: "an integer", float: "a finite number", type(None): "null", bool: "true or false", str: "a string"}
    if isinstance(hint, type):
        return words.get(hint, f"a {hint.__name__}")
    return inspect.formatannotation(hint)


def _is_ranged(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, RangedNumber)


def _has_number(hint: Any) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType, list, tuple, Sequence):
        return any(_has_number(choice) for choice in typing.get_args(hint))
    return hint in (int, float) or _is_ranged(hint)
