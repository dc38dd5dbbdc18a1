"""What pyproject.toml declares is what the program imports, and a release can be prepared from the sources."""

from __future__ import annotations

import ast
import re
import runpy
import shutil
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hasn_cli.errors import INSTALL_EXTRA, install_command
from hasn_cli.images.formats import FORMATS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
FOR_DEVELOPMENT = {"all", "bench", "peers", "test"}
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "examples").glob("*.[mps][dhy]*"),
]
WITH_EXTRA = re.compile(r"pip install (?:-\S+ (?:\S+\.txt )?)*(?P<what>\S*\[(?P<extras>\w[\w,]*)\][\"']?)")


def declared(*groups: list[str]) -> set[str]:
    """Names of the packages in groups of requirements."""
    return {canonicalize_name(Requirement(line).name) for group in groups for line in group} - {"hasn-cli"}


def trees() -> dict[str, ast.Module]:
    paths = sorted((ROOT / "hasn_cli").rglob("*.py"))
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def imported() -> set[str]:
    """Top-level names of everything that the package imports, in functions too."""
    names: set[str] = set()
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names.add(node.module)
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"hasn_cli"}


def test_every_imported_package_is_declared():
    distributions = packages_distributions()
    optional = [group for name, group in EXTRAS.items() if name not in FOR_DEVELOPMENT]
    allowed = declared(PROJECT["dependencies"], *optional)
    for name in imported():
        found = {canonicalize_name(distribution) for distribution in distributions.get(name, [name])}
        assert found & allowed, f"hasn_cli imports {name}, which pyproject.toml does not declare"


def test_the_extra_all_holds_every_optional_package_of_the_program():
    (line,) = EXTRAS["all"]
    assert Requirement(line).extras == set(EXTRAS) - FOR_DEVELOPMENT


def test_every_requirement_has_a_lower_bound_that_the_constraints_meet():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[canonicalize_name(name)] = version
    for group in [PROJECT["dependencies"], *EXTRAS.values()]:
        for line in group:
            requirement = Requirement(line)
            if requirement.name != "hasn-cli":
                assert re.fullmatch(r">=[\d.]+", str(requirement.specifier)), line  # .ci/lowest reads this form
                assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), line


def test_hints_name_extras_that_exist():
    named = {entry.extra for entry in FORMATS.values() if entry.extra}
    for tree in trees().values():
        for node in ast.walk(tree):
            function = getattr(node, "func", None)
            if isinstance(node, ast.Call) and getattr(function, "id", "") in ("MissingExtraError", "install_command"):
                last = node.args[-1]
                named |= {last.value} if isinstance(last, ast.Constant) else set()
    assert {"cluster", "heic", "onnx", "train"} <= named <= set(EXTRAS)


def test_only_one_line_of_the_code_says_how_to_install_an_extra():
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and path != "hasn_cli/errors.py":
                assert not re.search(r"pip3? install", node.value), f"{path}:{node.lineno}: use install_command()"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_install_extras_as_the_hints_do(page):
    text = page.read_bytes().decode("utf-8", errors="replace")
    for found in WITH_EXTRA.finditer(text):
        assert set(found["extras"].split(",")) <= set(EXTRAS), found[0]
        wanted = install_command(found["extras"]).removeprefix("pip install ")
        assert found["what"] == wanted, f"{found[0]}: write it like {INSTALL_EXTRA}"


@pytest.fixture
def release(tmp_path):
    """The sources of a release, prepared for a repository."""
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    prepare = runpy.run_path(str(ROOT / ".ci" / "prepare_release.py"))
    prepare["main"]("https://example.org/owner/repo", "v1.0", tmp_path)
    return tmp_path


def test_a_prepared_readme_has_absolute_links_only(release):
    before = re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    after = re.findall(r"\]\(([^)\s]+)\)", (release / "README.md").read_text(encoding="utf-8"))
    assert len(after) == len(before) and any(not link.startswith("http") for link in before)
    for old, new in zip(before, after, strict=True):
        if old.startswith(("http", "#")):
            assert new == old
        else:
            kind = "raw" if old.endswith((".png", ".jpg", ".webp")) else "blob"
            assert new == f"https://example.org/owner/repo/{kind}/v1.0/{old}"


def test_a_prepared_project_has_urls_and_is_otherwise_the_same(release):
    project = tomllib.loads((release / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project.pop("urls")["Issues"] == "https://example.org/owner/repo/issues"
    assert project == PROJECT
