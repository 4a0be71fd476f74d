"""Import the class that a config names, if it may be imported."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import site
import sys
import sysconfig
from collections.abc import Mapping
from importlib.metadata import Distribution, distributions
from typing import Any, TypeVar

from uniflow.core.errors import one_line

ClassT = TypeVar("ClassT")

# Entry points of this group name the modules whose classes the command line lists, and takes by their short names.
PLUGIN_GROUP = "uniflow.plugins"
# Modules that loading may import besides those of installed packages, separated by commas.
IMPORT_VARIABLE = "UNIFLOW_IMPORT"


def class_path(cls: type) -> str:
    """The shortest import path of `cls`: "uniflow.encoders.CLIP" if the package exports the class.

    A package keeps what it exports; its modules may move.
    """
    names = cls.__module__.split(".")
    for end in range(1, len(names)):
        package = ".".join(names[:end])
        if getattr(sys.modules.get(package), cls.__qualname__, None) is cls:
            return f"{package}.{cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def import_part(config: Mapping[str, Any], base: type[ClassT]) -> type[ClassT]:
    """The class that `config` names; nothing is instantiated.

    A config comes with weights from anywhere, and importing a module runs its code. So only these modules are imported:
    those of `uniflow`, of installed packages that depend on it, and those that the environment variable UNIFLOW_IMPORT
    names. Your program has to import any other module first. The current directory is not searched.

    Raises:
        ValueError: if it cannot or may not be imported, is not a subclass of `base`, or is abstract.
    """
    class_path = config.get("class_path")
    names = class_path.split(".") if isinstance(class_path, str) else []
    if not isinstance(class_path, str) or len(names) < 2 or not all(map(str.isidentifier, names)):
        raise ValueError(f"a {base.__name__} needs a class_path such as 'package.module.Class', not {class_path!r}")
    module_name, _, name = class_path.rpartition(".")
    if module_name not in sys.modules and not _may_import(module_name):
        raise ValueError(
            f"cannot import {class_path!r}: loading imports only uniflow and installed packages that depend on it; "
            f"import {module_name} yourself first, or set {IMPORT_VARIABLE}={module_name}"
        )
    try:
        cls = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"cannot import {class_path!r} ({error}); install the package that defines this {base.__name__}"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ValueError(f"{class_path} is not a {base.__name__}")
    if inspect.isabstract(cls):
        raise ValueError(f"{class_path} is abstract: name a {base.__name__} that is implemented")
    return cls


def import_plugins() -> None:
    """Import the modules that installed packages name as entry points of the group "uniflow.plugins".

    Raises:
        ImportError: naming the package whose module cannot be imported.
    """
    for distribution in distributions(path=_site_directories()):
        for module in _plugin_modules(distribution):
            try:
                importlib.import_module(module)
            except Exception as error:  # a module of someone else raises anything
                name = distribution.metadata["Name"]
                raise ImportError(
                    f"cannot import {module}, a plugin of the installed package {name}: {one_line(error, 400)}; "
                    f"repair {name} or uninstall it"
                ) from error


def _plugin_modules(distribution: Distribution) -> list[str]:
    return [entry.module for entry in distribution.entry_points if entry.group == PLUGIN_GROUP]


def _may_import(module: str) -> bool:
    named = [name.strip() for name in os.environ.get(IMPORT_VARIABLE, "").split(",") if name.strip()]
    if any(module == name or module.startswith(f"{name}.") for name in ["uniflow", *named]):
        return True
    return module.partition(".")[0] in _installed_packages()


def _installed_packages() -> set[str]:
    """Import names of the installed packages that depend on uniflow."""
    names: set[str] = set()
    for distribution in distributions(path=_site_directories()):
        if any(re.match(r"uniflow(?![\w.-])", requirement) for requirement in distribution.requires or []):
            listed = (distribution.read_text("top_level.txt") or "").split()
            names.update(listed or (file.parts[0].removesuffix(".py") for file in distribution.files or []))
            # An editable install may list nothing else.
            names.update(module.partition(".")[0] for module in _plugin_modules(distribution))
    return names


def _site_directories() -> list[str]:
    # Not sys.path: that may hold the current directory, where a downloaded folder could pose as a package.
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()}
    return sorted(installed | set(site.getsitepackages()))
