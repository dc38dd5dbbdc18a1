"""Fill in the address of the repository before a release is built.

The sources name no address, because forks and mirrors have different ones. PyPI shows the README outside the
repository, where relative links and pictures lead nowhere. This rewrites, in place:

- README.md: relative links and pictures become absolute ones, pinned to the release's tag;
- pyproject.toml: gets a [project.urls] table.

    python .ci/prepare_release.py https://github.com/OWNER/REPO v1.2.3
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

LINK = re.compile(r"(?P<picture>!?)(?P<text>\[[^\]]*\])\((?!https?:|mailto:|#)(?P<path>[^)\s]+)\)")
IMAGE_SOURCE = re.compile(r'(?P<before><img[^>]*\bsrc=")(?!https?:)(?P<path>[^"]+)')


def absolute_links(text: str, repository: str, tag: str) -> str:
    """`text` in Markdown with each relative link made absolute: pictures to the raw file, others to its page."""

    def replace(match: re.Match[str]) -> str:
        kind = "raw" if match["picture"] else "blob"
        return f"{match['picture']}{match['text']}({repository}/{kind}/{tag}/{match['path']})"

    text = LINK.sub(replace, text)
    return IMAGE_SOURCE.sub(lambda match: f"{match['before']}{repository}/raw/{tag}/{match['path']}", text)


def with_urls(text: str, repository: str) -> str:
    """The text of pyproject.toml with a [project.urls] table, before [project.scripts]."""
    urls = {
        "Homepage": repository,
        "Documentation": f"{repository}/tree/HEAD/docs",
        "Changelog": f"{repository}/blob/HEAD/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
    table = "\n".join(["[project.urls]", *(f'{name} = "{url}"' for name, url in urls.items())])
    before, marker, after = text.partition("[project.scripts]")
    if not marker or "[project.urls]" in text:
        raise SystemExit("pyproject.toml: expected [project.scripts], and no [project.urls] yet")
    return f"{before}{table}\n\n{marker}{after}"


def main(repository: str, tag: str, root: Path) -> None:
    """Rewrite README.md and pyproject.toml below `root`."""
    repository = repository.rstrip("/").removesuffix(".git")
    if not re.fullmatch(r"https://[\w.-]+/[\w./-]+", repository):
        raise SystemExit(f"{repository} is not the https:// address of a repository")
    readme, project = root / "README.md", root / "pyproject.toml"
    readme.write_text(absolute_links(readme.read_text(encoding="utf-8"), repository, tag), encoding="utf-8")
    project.write_text(with_urls(project.read_text(encoding="utf-8"), repository), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2], Path.cwd())
