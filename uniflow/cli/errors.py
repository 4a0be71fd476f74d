"""One clear line for errors that the user can fix."""

from __future__ import annotations

import re
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from uniflow.core.disk import NoSpaceError
from uniflow.core.errors import one_line
from uniflow.core.exit_codes import BAD_INPUT, NO_SPACE

# Lines of jsonargparse's reports that say how it tried, not what is wrong.
_NOISE = re.compile(
    r"(- )?Does not validate against any of the Union subtypes\W*|Subtypes: .*|Errors:"
    r"|Given value type: .*|Given value: .*"
    r"|(- )?Expected a <class 'NoneType'>.*|(- )?Expected a path but .*|(- )?Problem with given class_path .*"
    r"|(- )?Expected a dot import path string: .*|(- )?Unexpected import path format: .*"
    r"|(- )?Subclass types expect one of:|- a class path \(str\)|- a dict with.*|- a dict without.*"
    r"|(- )?Expected a List.*|(- )?Expected a list.*|Type \S.* expects a function or a callable class:"
)
_MARKUP = [
    (re.compile(r"<class '(?:builtins\.)?([\w.]+)'>"), r"\1"),
    (re.compile(r"Type \S.* expects a function or a callable class: "), ""),
    (re.compile(r"\.? Got value: (Namespace|NestedArg)\(.*\)"), ""),
    (re.compile(r"\.+ Got value: (.*)$"), r", got \1"),
    (re.compile(r"Expected an? "), "expected "),
    (re.compile(r"typing\.Literal\[([^]]*)\]"), r"one of \1"),
    (re.compile(r"\b(typing|collections\.abc)\."), ""),
    (re.compile(r'in "<unicode string>", '), ""),
]
_UNION = "Does not validate against any of the Union subtypes"
LONGEST = 400  # characters of what is said of a union
_KEY = re.compile(r'Parser key "([^"]+)":')


class UserError(Exception):
    """An error that the user can fix.

    Args:
        message: the one line that is shown.
        code: the exit code.
    """

    def __init__(self, message: str, code: int = BAD_INPUT) -> None:
        super().__init__(message)
        self.code = code


def readable_report(message: str) -> str:
    """jsonargparse's nested report as one line: the option, then what is wrong with it."""
    keys = [k.replace("init_args.", "") for k in _KEY.findall(message)]
    reasons: list[str] = []
    for line in _KEY.sub("\n", message).splitlines():
        text = line.strip()
        if not text or _NOISE.fullmatch(text):
            continue
        for pattern, replacement in _MARKUP:
            text = pattern.sub(replacement, text)
        text = text.removeprefix("- ").strip().rstrip(".")
        if text and text not in reasons:
            reasons.append(text)
    reason = "; ".join(reasons) or " ".join(message.split())
    if _UNION in message:
        reason = textwrap.shorten(reason, LONGEST, placeholder=" ...")
    return f"{'.'.join(keys)}: {reason}" if keys else reason


def readable(error: BaseException) -> str:
    """An error's text on one line; jsonargparse's report about a union in the words of `readable_report`."""
    return readable_report(str(error)) if _UNION in str(error) else one_line(error)


def memory_advice(error: BaseException) -> str:
    """What to do where the memory of a GPU or of the machine ran out, to follow the error; "" for other errors."""
    on_gpu = any(cls.__name__ == "OutOfMemoryError" for cls in type(error).__mro__)
    if not on_gpu and not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):
        return ""
    return (
        "; take a smaller --data.batch_size (and --trainer.accumulate_grad_batches) or smaller images; `uniflow plan` "
        "says what a fit takes"
    )


def raised_here(error: BaseException) -> bool:
    """Whether this package itself raised `error`: its ValueErrors say what is wrong with the input."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).split(".")[0] == "uniflow"


def who_stopped(stop: SystemExit) -> str:
    """The module that called `sys.exit`."""
    *_, (frame, _) = traceback.walk_tb(stop.__traceback__)
    return str(frame.f_globals.get("__name__", "a module"))


def user_error_types() -> tuple[type[Exception], ...]:
    """What parts, data modules and tools raise for bad input."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    return (ValueError, TypeError, OSError, ImportError, MisconfigurationException)


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn what is raised for bad input into `UserError`."""
    try:
        yield
    except NoSpaceError as error:
        raise UserError(str(error), NO_SPACE) from error
    except user_error_types() as error:
        raise UserError(readable(error)) from error
