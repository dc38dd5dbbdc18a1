"""The README is true: its commands work as printed, the tables of options are up to date, and links lead somewhere.

All ```sh and ```python blocks of README.md are run, and those in docs/ with a line `<!-- run -->` above them. A block
under `<!-- not run: REASON -->` is not run, and neither are the two set-up commands, which .ci/run runs in a fresh
environment.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from clips import Recipe, make_clip, smooth_frames
from pictures import dng, photo
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples/README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
SHORTER = {"--minutes 60": "--iterations 2", "3840x2160": "160x90", "hasn doctor": "hasn doctor --seconds 0.1"}
BLOCK = re.compile(r"(?:<!-- (?P<mark>[^\n]*?) -->\n\n?)?```(?P<language>\w+)\n(?P<text>.*?)```\n", re.DOTALL)


@dataclass(frozen=True)
class Block:
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The blocks of a page that are to be run, in order."""
    found = []
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        mark = match["mark"] or ""
        wanted = mark == "run" or (page.name == "README.md" and page.parent == ROOT)
        left_out = mark.startswith("not run: ") or mark == "setup:begin"
        if match["language"] in ("sh", "python") and wanted and not left_out:
            found.append(Block(match["language"], match["text"]))
    return found


def picture(path: Path, source: str, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(ROOT / "examples" / source) as image:
        left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
        image.convert("RGB").crop((left, top, left + size[0], top + size[1])).save(path)


@pytest.fixture
def sandbox(tmp_path):
    """A folder with the pictures that the pages mention, small so that the commands are quick."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("*.jpg", "*.png"))
    shutil.copytree(ROOT / "weights", tmp_path / "weights")
    for name in ("camera.jpg", "forest.jpg", "flower.png", "page.png"):
        picture(tmp_path / "examples" / name, name, (48, 40))
    for name in ("photo.jpg", "a.png", "scan.tiff", "holiday/beach.jpg", "holiday/2019/wood.jpg"):
        picture(tmp_path / name, "camera.jpg", (48, 40))
    (tmp_path / "IMG_0001.CR2").write_bytes(dng(photo()))
    make_clip(tmp_path / "clip.mp4", smooth_frames(3, 16, 24), Recipe(sound=True))
    for folder in ("pictures", "validation"):
        for source in ("forest.jpg", "camera.jpg"):
            picture(tmp_path / folder / source, source, (260, 220))
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_every_command_works_as_printed(page, sandbox, path_with_hasn):
    env = {**os.environ, "PATH": path_with_hasn, "HOME": str(sandbox)}
    runners = {"sh": ["bash", "-euxo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    for block in blocks(page):
        text = block.text
        for long, short in SHORTER.items():
            text = text.replace(long, short)
        done = subprocess.run([*runners[block.language], text], cwd=sandbox, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


def test_the_tables_of_options_are_up_to_date():
    done = subprocess.run([sys.executable, ROOT / "docs/reference.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}; run: python docs/reference.py"


def test_a_changed_option_makes_the_tables_out_of_date(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    page = tmp_path / "docs" / "commands.md"
    page.write_text(page.read_text(encoding="utf-8").replace("--tta", "--ttb"), encoding="utf-8")
    check = [sys.executable, tmp_path / "docs/reference.py", "--check"]
    assert subprocess.run(check, capture_output=True).returncode == 1
    subprocess.run(check[:-1], check=True, capture_output=True)
    assert subprocess.run(check, capture_output=True).returncode == 0
    assert page.read_text(encoding="utf-8") == (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The anchors that a Markdown viewer makes from a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_within_the_project_leads_somewhere(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def test_the_map_names_every_module_and_nothing_that_is_gone():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [line for line in text.split("## The map")[1].split("\n## ")[0].splitlines() if line.startswith("| `")]
    named = {name.rstrip("/") for row in rows for name in re.findall(r"`([\w/]+(?:\.py|/))`", row.split(" | ")[0])}
    package = ROOT / "hasn_cli"
    there = {path.name for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/__init__.py")}
    also = set(re.findall(r"`(\w+\.py)`", "\n".join(rows))) & there  # mentioned in another row
    assert (named | also) - {"hasn_cli"} == there - {"__init__.py", "__main__.py"}
    for name in re.findall(r"`((?:tests|benchmarks|docs|examples|images|weights)/[\w./-]+)`", text):
        assert (ROOT / name).exists() or (package / name).exists(), name


def test_the_readme_can_be_read_in_one_sitting():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200


def test_the_table_of_events_names_every_field():
    from hasn_cli.batch import Done, Failed, Progress, Skipped, Started
    from hasn_cli.batch.events import Stopped
    from hasn_cli.batch.jobs import Job
    from hasn_cli.console import Report

    job = Job(0, Path("a.png"), Path("b.png"), "a.png")
    told = [
        Started(job, (1, 2), (4, 8), 1, "png", ""),
        Progress(job, 0.5, 1.0),
        Done(job, 1.0, 1.0, (1, 2), (4, 8), 9),
        Skipped(job, ""),
        Failed(job, ValueError()),
        Stopped("", 1),
        Report(),
    ]
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| (.*) \|$", (ROOT / "docs/batch.md").read_text("utf-8"), re.MULTILINE)
    documented = {event: re.findall(r"`(\w+)`", fields.replace("their `failed` events", "")) for event, fields in rows}
    real = {str((values := event.to_dict()).pop("event")): list(values) for event in told}
    assert documented == real
