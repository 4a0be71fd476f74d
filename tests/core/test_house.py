"""The house keeps its plan: rooms only, no circle of imports, arrows that point down, commands as leaves."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "uniflow"
# Rooms from the ground up; a file imports from its own room and from rooms on lower floors.
FLOORS = [
    {"core", "version", "pretrained"},
    {"layers", "flow"},
    {"sharding", "losses", "pictures"},
    {"encoders", "bottleneck", "decoders", "conditions", "training"},
    {"distill", "metrics", "data", "tokenizer"},
    {"start", "features", "generators"},
    {"heads", "evaluation", "language"},
    {"callbacks"},
    {"tasks"},
    {"plan"},
    {"cli"},
    {"ablation"},
    {"tools"},
]


def modules():
    paths = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(("uniflow", *path.relative_to(PACKAGE).with_suffix("").parts))
        paths[name.removesuffix(".__init__")] = path
    return paths


MODULES = modules()


def imports(module):
    """Modules of the package that a file imports anywhere, also inside functions and for type checkers only."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "uniflow":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
    return found - {module}


GRAPH = {module: imports(module) for module in MODULES}


def room(module):
    return module.split(".")[1] if "." in module else ""


def test_the_top_level_holds_rooms_only():
    loose = {path.name for path in PACKAGE.iterdir() if path.is_file()} - {"__init__.py", "version.py", "py.typed"}
    assert not loose
    assert {room(module) for module in MODULES} - {""} == set().union(*FLOORS)


def test_no_two_files_import_each_other():
    state, stack = {}, []

    def visit(module):
        state[module] = "open"
        stack.append(module)
        for other in sorted(GRAPH[module]):
            if state.get(other) == "open":
                circle = [*stack[stack.index(other) :], other]
                pytest.fail("circle of imports: " + " -> ".join(circle))
            if other not in state:
                visit(other)
        stack.pop()
        state[module] = "done"

    for module in sorted(GRAPH):
        if module not in state:
            visit(module)


def test_arrows_point_down():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    upward = [
        f"{module} -> {other}"
        for module in GRAPH
        for other in GRAPH[module]
        if room(module) and room(other) and room(module) != room(other)
        if floor[room(other)] >= floor[room(module)]
    ]
    assert not upward


def test_no_library_imports_a_command():
    commands = {"cli", "tools", "ablation"}
    wrong = [f"{m} -> {o}" for m in GRAPH for o in GRAPH[m] if room(o) in commands and room(m) not in commands]
    assert not wrong


def test_nothing_outside_tasks_asks_for_the_class_of_a_task():
    classes = {"TokenizerTask", "Pretraining", "FeatureTask"}
    wrong = []
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
                names = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
                if names & classes and room(module) != "tasks":
                    wrong.append(f"{module}:{node.lineno}")
    assert not wrong


def test_files_are_short():
    long = [f"{m}: {n} lines" for m, p in MODULES.items() if (n := len(p.read_text().splitlines())) > 400]
    assert not long
