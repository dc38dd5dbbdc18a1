"""Rules for the code: which layer may import which, and that modules and public functions have docstrings."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "hasn_cli"
MODULES = {
    ".".join(["hasn_cli", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
GROUND = {
    f"hasn_cli.{name}" for name in ("errors", "files", "machine", "network", "permissions", "redaction", "resize")
}
FACES = ("hasn_cli.cli", "hasn_cli.console", "hasn_cli.__main__")  # the layer that talks to users

NEVER = [
    # (who, never imports, and why)
    ("hasn_cli.errors", ("hasn_cli",), "the lowest layer"),
    ("hasn_cli.network", ("hasn_cli", "PIL", "numpy"), "the network depends on nothing"),
    ("hasn_cli.weights", ("click", "rich", "PIL"), "weights are independent of pictures"),
    ("hasn_cli.inference", ("PIL", "click", "rich", "hasn_cli.weights", "hasn_cli.images"), "arrays in, arrays out"),
    ("hasn_cli.images", ("torch", "hasn_cli.network", "hasn_cli.inference"), "pictures are independent of the network"),
    ("hasn_cli.enlarge", ("torch", "hasn_cli.inference", "hasn_cli.weights"), "gets its upscaler as an argument"),
    ("hasn_cli.video", ("torch", "hasn_cli.inference", "hasn_cli.batch", "hasn_cli.enlarge"), "frames in, frames out"),
    ("hasn_cli.console", ("torch", "numpy", "hasn_cli.cli"), "only shows"),
    ("hasn_cli.evaluation", ("hasn_cli.training", "hasn_cli.cli"), "is independent of training"),
    ("hasn_cli.enlarge", ("hasn_cli.evaluation", "hasn_cli.batch"), "is below them"),
    ("hasn_cli.training", ("hasn_cli.cli",), "is used by the command"),
]


def _type_checking_only(tree: ast.AST) -> set[ast.AST]:
    """Everything below `if TYPE_CHECKING:`, which never runs."""
    guarded = [n for n in ast.walk(tree) if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"]
    return {below for node in guarded for statement in node.body for below in ast.walk(statement)}


def imports(module: str) -> set[str]:
    """Full names of a module's imports, including those in functions."""
    tree = ast.parse(MODULES[module].read_text())
    skipped = _type_checking_only(tree)
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize(("who", "never", "why"), NEVER)
def test_a_layer_imports_nothing_that_it_must_not(who, never, why):
    modules = [module for module in MODULES if within(module, who)]
    assert modules, f"{who} is gone; update this table"
    for module in modules:
        wrong = {n for n in imports(module) for banned in never if within(n, banned) and not within(n, who)}
        assert not wrong, f"{module} imports {wrong}: {why}"


@pytest.mark.parametrize("module", [m for m in MODULES if not any(within(m, face) for face in FACES)])
def test_the_library_does_not_use_the_console(module):
    talk = {name for name in imports(module) if any(within(name, p) for p in ("click", "rich", "hasn_cli.cli"))}
    assert not talk or module.startswith("hasn_cli.compare"), talk
    tree = ast.parse(MODULES[module].read_text())
    assert not [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print"]


@pytest.mark.parametrize("module", sorted(GROUND))
def test_the_ground_rests_on_nothing_above_it(module):
    above = {name for name in imports(module) if name in MODULES and name not in GROUND | {"hasn_cli"}}
    assert not above


def test_imports_have_no_cycle():
    graph = {
        module: {other for other in imports(module) if other in MODULES and not within(module, other)}
        for module in MODULES  # a package that re-exports its own modules is not a cycle
    }
    assert list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", MODULES)
def test_every_module_and_public_function_has_a_docstring(module):
    tree = ast.parse(MODULES[module].read_text())
    assert ast.get_docstring(tree) or not tree.body, module
    public = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
    assert not [node.name for node in public if not ast.get_docstring(node)]
