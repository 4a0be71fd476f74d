"""Samples to a batch: fields of equal shape are stacked, declared fields stay lists."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch.utils.data import default_collate

from uniflow.data.errors import DataError


class CollateError(DataError):
    """Samples that do not fit into one batch; the message names the field."""


def collate(samples: Sequence[dict[str, Any]], list_fields: Collection[str] = frozenset()) -> dict[str, Any]:
    """Make a batch of samples with the same fields.

    Args:
        samples: B dicts with the same keys.
        list_fields: fields that become lists of B values, whatever these are.

    Returns:
        A dict with the fields of the samples. Tensors and arrays become a tensor (B, ...), numbers a tensor (B,),
        strings a list; dicts and sequences are collated by `torch.utils.data.default_collate`.

    Raises:
        CollateError: if a sample lacks a field that another one has, or if the values of a field cannot be stacked.
    """
    fields = samples[0].keys()
    for number, sample in enumerate(samples):
        if missing := sorted(fields ^ sample.keys()):
            raise CollateError(
                f"samples 0 and {number} of a batch have different fields: only one of them has {', '.join(missing)}"
            )
    values = {field: [sample[field] for sample in samples] for field in samples[0]}
    return {field: v if field in list_fields else _stack(field, v) for field, v in values.items()}


def _stack(field: str, values: list[Any]) -> Any:
    shapes = list(dict.fromkeys(tuple(v.shape) if hasattr(v, "shape") else None for v in values))
    if len(shapes) > 1:
        raise CollateError(
            f"the samples of a batch have {field!r} of different shapes, {shapes[0]} and {shapes[1]}; "
            f"{_what_to_do(field)}"
        )
    try:
        return default_collate(values)
    except (RuntimeError, TypeError, KeyError) as error:
        reason = str(error).split("\n")[0]
        raise CollateError(f"{field!r} cannot be stacked to a batch ({reason}); {_what_to_do(field)}") from error


def _what_to_do(field: str) -> str:
    return f"bring them to one shape, or add {field!r} to the data module's list_fields"
