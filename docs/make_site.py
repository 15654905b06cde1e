"""Builds the documentation as a site, whose links are checked: bash script/docs.sh [FOLDER].

The pages are those of the repository. Links between them stay links; one to a file that is no page becomes its name.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:)([^)#\s]*)(#[^)]*)?\)")
PAGES = {  # file of the repository -> page of the site; those of docs/ keep their names
    "README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md",
    "data/README.md": "data.md", "code/genrec/runtime/flags.md": "flags.md",
}  # fmt: skip
ORDER = (
    ("Start", ("index", "installation", "your-data", "variables", "recommending")),
    ("Method", ("training", "teacher-data", "identifiers", "specgr", "differences")),
    ("Decoder", ("decoder", "exactness", "performance", "api")),
    ("Large", ("gpu", "scale")),
    ("Results", ("results/README",)),
    ("Code", ("architecture", "extending", "contributing", "changelog", "flags", "data")),
)


def pages() -> dict[Path, str]:
    """Every file of the site -> its place there."""
    found = {ROOT / name: page for name, page in PAGES.items()}
    for path in sorted((ROOT / "docs").rglob("*")):
        if path.suffix in (".md", ".svg", ".png", ".csv", ".json"):
            found[path] = path.relative_to(ROOT / "docs").as_posix()
    return found


def linked(text: str, source: Path, places: dict[Path, str]) -> str:
    """A page with its links as they are in the site. Raises SystemExit for one that leads nowhere."""

    def link(match: re.Match[str]) -> str:
        mark, words, target, anchor = match.groups()
        if not target:  # within the page
            return match[0]
        path = Path(os.path.normpath(source.parent / target))
        if not path.exists():
            sys.exit(f"error: {source.relative_to(ROOT)}: {target} leads nowhere")
        if path.is_dir() and (path / "README.md") in places:
            path = path / "README.md"
        if path not in places:
            return f"{words} (`{path.relative_to(ROOT)}`)"
        here = os.path.relpath(places[path], Path(places[source]).parent)
        return f"{mark}[{words}]({here}{anchor or ''})"

    parts = re.split(r"(```.*?```)", text, flags=re.DOTALL)  # code stays as it is
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts)


def main(output: str) -> None:
    places = pages()
    with TemporaryDirectory() as work:
        for source, place in places.items():
            target = Path(work) / "docs" / place
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix == ".md":
                target.write_text(linked(source.read_text("utf-8"), source, places), "utf-8")
            else:
                shutil.copyfile(source, target)
        navigation = "".join(
            f"  - {title}:\n" + "".join(f"      - {page}.md\n" for page in names) for title, names in ORDER
        )
        settings = (
            "site_name: AtSpeed\ntheme: readthedocs\nuse_directory_urls: false\n"
            "markdown_extensions: [tables, fenced_code, toc]\n"
            f"validation: {{links: {{anchors: warn}}, nav: {{omitted_files: ignore}}}}\nnav:\n{navigation}"
        )
        (Path(work) / "mkdocs.yml").write_text(settings, "utf-8")
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(Path(output).absolute())]
        sys.exit(subprocess.run(command, cwd=work, check=False).returncode)


if __name__ == "__main__":
    main(sys.argv[1])
