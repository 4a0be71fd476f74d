"""The YAML file of an ablation: what it may say, and the runs that it amounts to."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from uniflow.ablation.metrics import DEFAULT, DIRECTIONS, Metric, named_metric
from uniflow.cli.shipped import find
from uniflow.core.yaml_files import StrictLoader, read_yaml

KEYS = ("name", "description", "base", "options", "grid", "variants", "seeds", "metrics")
# Options that an ablation sets itself -> what to do instead.
RESERVED = {
    "run": "every run has its own folder under --out",
    "ckpt_path": "a run that was stopped continues by itself",
    "seed_everything": "list the seeds under seeds:",
    "config": "name the recipe under base:",
    "print_config": "--dry_run shows the commands",
}
_OPTION = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*")
MOST = 10_000  # runs of one ablation
COMPONENT_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Run:
    """One training of one variant with one seed.

    Args:
        variant: the variant's name.
        seed: the value of `seed_everything`.
        base: recipes, in order.
        options: options after the recipes, in order: dotted name -> value.
        folder: the run's folder; log, state and lock lie beside it.
    """

    variant: str
    seed: int
    base: tuple[Path, ...]
    options: Mapping[str, Any]
    folder: Path

    @property
    def label(self) -> str:
        return f"{self.variant}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """What fit and test have printed."""
        return self.folder.with_name(self.folder.name + ".log.txt")

    @property
    def state(self) -> Path:
        """How far the run has come."""
        return state_file(self.folder)

    @property
    def lock(self) -> Path:
        """Held by the process that runs it."""
        return self.folder.with_name(f".{self.folder.name}.lock")

    @property
    def recipe_words(self) -> list[str]:
        """The recipes and options of `uniflow fit`, without folder and seed."""
        words = [word for path in self.base for word in ("-c", str(path))]
        return words + [word for name, value in self.options.items() for word in (f"--{name}", option_word(value))]

    def fit_words(self, *, resume: bool = False) -> list[str]:
        """The command line of training, after `uniflow`."""
        words = ["fit", *self.recipe_words, "--seed_everything", str(self.seed), "--run", str(self.folder)]
        return words + (["--ckpt_path", "last"] if resume else [])

    def test_words(self) -> list[str]:
        """The command line of evaluation, after `uniflow`."""
        return ["test", "-c", str(self.folder / "config.yaml"), "--run", str(self.folder), "--ckpt_path", "last"]

    def digest(self) -> str:
        """A hash of all that the run is told: recipes and component files by content, options, seed."""
        told = {
            "base": [_inlined(read_yaml(path, StrictLoader), path.parent) for path in self.base],
            "options": [[name, _inlined(value, Path())] for name, value in self.options.items()],
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Plan:
    """An ablation.

    Args:
        source: the YAML file.
        name: title of the report.
        description: a few sentences for the report.
        base: recipes that every run starts from.
        options: options of every run.
        variants: name -> options that make the variant.
        seeds: each variant is run with each of these.
        metrics: columns of the report.
    """

    source: Path
    name: str
    description: str
    base: tuple[Path, ...]
    options: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    metrics: tuple[Metric, ...]

    def runs(self, out: Path) -> list[Run]:
        """All runs, folders under `out`/runs; all variants of the first seed come first."""
        return [
            Run(name, seed, self.base, _merged(self.options, changes), out / "runs" / _slug(name) / f"seed{seed}")
            for seed in self.seeds
            for name, changes in self.variants.items()
        ]


def read_plan(path: Path) -> Plan:
    """Read the YAML file of an ablation. What it may hold: `docs/ablation.md`.

    Raises:
        FileNotFoundError: if there is no such file, or a recipe that it names does not exist.
        ValueError: if it holds anything else than it may.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no ablation {path}")
    content = read_yaml(path, StrictLoader)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: an ablation is a mapping with the keys {', '.join(KEYS)}")
    reader = _Reader(path)
    reader.names(content, KEYS, "key")
    variants = reader.variants(content.get("variants"), content.get("grid"))
    seeds = reader.seeds(content.get("seeds", [0]))
    reader.refuse_many(len(variants) * len(seeds), "runs")
    return Plan(
        source=path,
        name=reader.text(content, "name", path.stem),
        description=reader.text(content, "description", "").strip(),
        base=reader.base(content.get("base")),
        options=reader.options(content.get("options"), "options"),
        variants=variants,
        seeds=seeds,
        metrics=reader.metrics(content.get("metrics")),
    )


class _Reader:
    """Checks the parts of the file `path`; its errors begin with that path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def refuse(self, message: str) -> NoReturn:
        raise ValueError(f"{self.path}: {message}")

    def names(self, given: Iterable[Any], known: Sequence[str], what: str) -> None:
        for name in given:
            if name not in known:
                self.refuse(unknown(what, name, known))

    def text(self, content: dict[str, Any], key: str, default: str) -> str:
        value = content.get(key, default)
        return value if isinstance(value, str) else self.refuse(f"{key} must be text, got {value!r}")

    def base(self, value: Any) -> tuple[Path, ...]:
        files = [value] if isinstance(value, str) else value
        if not isinstance(files, list) or not files or not all(isinstance(file, str) for file in files):
            self.refuse(f"base must be a recipe's path or a list of them, got {value!r}")
        paths = [_from_here(self.path.parent / file) for file in files]
        for number, (path, file) in enumerate(zip(list(paths), files, strict=True)):
            if not path.is_file():
                shipped = find(file, "recipe")
                if shipped is None:
                    raise FileNotFoundError(f"{self.path}: base names {path}, which does not exist")
                paths[number] = shipped
        return tuple(paths)

    def options(self, value: Any, where: str) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.refuse(f"{where} must map options to values, got {value!r}")
        self.option_names(value, where)
        return {name: self.located(setting) for name, setting in value.items()}

    def option_names(self, given: Iterable[Any], where: str) -> None:
        for name in given:
            if problem := option_problem(name):
                self.refuse(f"{where}: {problem}")

    def located(self, value: Any) -> Any:
        """`value`; if it is a component file seen from the ablation's file, its path from here."""
        file = self.path.parent / value if isinstance(value, str) and value.endswith(COMPONENT_SUFFIXES) else None
        return str(_from_here(file)) if file is not None and file.is_file() else value

    def variants(self, named: Any, grid: Any) -> dict[str, dict[str, Any]]:
        """Name -> options: each variant that has a name, at each point of the grid."""
        if named is not None and (not isinstance(named, dict) or not named):
            self.refuse(f"variants must map names to options, got {named!r}")
        for name in named or ():
            if not isinstance(name, str):
                self.refuse(f"variants: the name {name!r} is not text; put it in quotes")
            if not _slug(name):
                self.refuse(f"variants: the name {name!r} has no letter or digit")
        own = {name: self.options(changes, f"variants.{name}") for name, changes in (named or {"": {}}).items()}
        points = self.grid(grid)
        self.refuse_many(len(own) * len(points), "variants")
        both = {
            ", ".join(filter(None, (name, point))) or "base": _merged(changes, settings)
            for name, changes in own.items()
            for point, settings in points.items()
        }
        folders = [_slug(name) for name in both]
        if len(set(folders)) < len(own) * len(points):
            twice = next((name for name in both if folders.count(_slug(name)) > 1), "some")
            self.refuse(f"two variants share the name or the folder {_slug(twice)!r}; rename one of them")
        return both

    def refuse_many(self, count: int, what: str) -> None:
        """Before they are made: a grid grows with every option."""
        if count > MOST:
            self.refuse(f"{count:,} {what} are more than {MOST:,}: list fewer values")

    def grid(self, value: Any) -> dict[str, dict[str, Any]]:
        """Name -> options of each point of the Cartesian product; one nameless point without a grid."""
        if value is None:
            return {"": {}}
        if not isinstance(value, dict) or not value:
            self.refuse(f"grid must map options to lists of values, got {value!r}")
        self.option_names(value, "grid")
        for name, settings in value.items():
            if not isinstance(settings, list) or not settings:
                self.refuse(f"grid.{name} must be a list of values, got {settings!r}")
        self.refuse_many(math.prod(map(len, value.values())), "points of the grid")
        short = _short_names(list(value))
        points: dict[str, dict[str, Any]] = {}
        for choice in itertools.product(*value.values()):
            label = ", ".join(f"{short[name]}={value_label(item)}" for name, item in zip(value, choice, strict=True))
            if label in points:
                self.refuse(f"grid: two points share the name {label!r}; give them names under variants:")
            points[label] = {name: self.located(item) for name, item in zip(value, choice, strict=True)}
        return points

    def seeds(self, value: Any) -> tuple[int, ...]:
        self.refuse_many(len(value) if isinstance(value, list) else 0, "seeds")
        whole = isinstance(value, list) and all(type(seed) is int and seed >= 0 for seed in value)
        if not whole or not value or len(set(value)) < len(value):
            self.refuse(f"seeds must be a list of different whole numbers, got {value!r}")
        return tuple(value)

    def metrics(self, value: Any) -> tuple[Metric, ...]:
        if value is None:
            return tuple(named_metric(key) for key in DEFAULT)
        if not isinstance(value, dict) or not value:
            self.refuse(f"metrics must map names in test_results.json to {', '.join(DIRECTIONS)}, got {value!r}")
        for key, better in value.items():
            if not isinstance(key, str) or better not in DIRECTIONS:
                self.refuse(f"metrics.{key} must be one of {', '.join(DIRECTIONS)}, got {better!r}")
        return tuple(named_metric(key, better) for key, better in value.items())


def unknown(what: str, name: Any, known: Sequence[str]) -> str:
    """One line about a name that does not exist: the nearest that does, and all of them."""
    close = difflib.get_close_matches(str(name), known, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    return f"there is no {what} {name!r}; {guess}known: {', '.join(known)}"


def option_problem(name: Any) -> str | None:
    """Why `name` is not an option that an ablation can set, in one line; None if it may be one."""
    if not isinstance(name, str) or not _OPTION.fullmatch(name):
        return f"{name!r} is not an option; write it as in model.weighting.beta, without dashes"
    return f"{name} cannot be set here; {RESERVED[name]}" if name in RESERVED else None


def option_word(value: Any) -> str:
    """A value as a word of the command line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def value_label(value: Any) -> str:
    """A value as names and tables show it: classes by their short names, files without their folder."""
    if isinstance(value, dict) and "class_path" in value:
        given = ", ".join(f"{key} {value_label(item)}" for key, item in (value.get("init_args") or {}).items())
        return value_label(value["class_path"]) + (f" ({given})" if given else "")
    if isinstance(value, str) and value.endswith(COMPONENT_SUFFIXES):
        return Path(value).stem
    if isinstance(value, str) and re.fullmatch(r"([A-Za-z_]\w*\.)+[A-Z]\w*", value):
        return value.rpartition(".")[2]
    return option_word(value)


def state_file(folder: Path) -> Path:
    """Where the state of the run in `folder` is kept: beside it."""
    return folder.with_name(folder.name + ".state.json")


def _short_names(options: list[str]) -> dict[str, str]:
    """Each option's shortest ending that no other of them has."""
    short = {}
    for option in options:
        parts = option.split(".")
        endings = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        others = [other for other in options if other != option]
        short[option] = next(end for end in endings if not any(f".{other}".endswith(f".{end}") for other in others))
    return short


def _slug(name: str) -> str:
    """A name as a folder: letters, digits and . = + - stay."""
    return re.sub(r"[^\w.=+-]+", "_", name).strip("_.")


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Both, in order; options of `second` come after those of `first`, also where both set them."""
    return {name: value for name, value in first.items() if name not in second} | dict(second)


def _from_here(path: Path) -> Path:
    """A path as seen from the current directory, where commands are run."""
    return Path(os.path.relpath(path))


def _inlined(value: Any, folder: Path, inside: tuple[Path, ...] = ()) -> Any:
    """`value` with every YAML file that it names replaced by its content; `inside` are the files that lead here.

    Raises:
        ValueError: if a file names itself, also by way of others.
    """
    if isinstance(value, dict):
        return {str(key): _inlined(item, folder, inside) for key, item in value.items()}
    if isinstance(value, list):
        return [_inlined(item, folder, inside) for item in value]
    if isinstance(value, str) and value.endswith(COMPONENT_SUFFIXES) and (folder / value).is_file():
        path = (folder / value).resolve()
        if path in inside:
            raise ValueError(f"{folder / value} names itself, by way of {inside[-1]}")
        return {"file": _inlined(read_yaml(path, StrictLoader), path.parent, (*inside, path))}
    return value
