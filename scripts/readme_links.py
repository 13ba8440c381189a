"""What follows from the one place that says where the repository is: tool.ddim.repository.

    python scripts/readme_links.py            # the README as the package's page will show it
    python scripts/readme_links.py --write build/README.md

Links and pictures of README.md are relative, which a page elsewhere cannot follow. With an address
they become absolute, at the tag of the version; without one links become text, pictures are left
out, and a line on stderr says so. ``setup.py`` makes the package's long description by this file,
``scripts/tutorials.py`` the Colab line of the notebooks. It needs nothing but Python.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.M | re.S)
ELSEWHERE = re.compile(r"[a-z][a-z+.-]*:|#|//", re.I)


def repository(root: Path = ROOT) -> str:
    """The address of the repository, without a slash at its end; empty while there is none.

    Raises:
        ValueError: it is none of a repository.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    url = project["tool"]["ddim"]["repository"].rstrip("/")
    if url and not re.fullmatch(r"https://[\w.-]+/[\w.-]+/[\w.-]+", url):
        raise ValueError(f"tool.ddim.repository is https://HOST/OWNER/NAME, not {url!r}")
    return url


def version(root: Path = ROOT) -> str:
    """The version that is being made."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return project["project"]["version"]


def absolute(text: str, url: str, ref: str) -> tuple[str, int]:
    """A page whose relative links lead to a repository, and how many there were.

    Args:
        text: Markdown.
        url: of the repository; empty for none, which leaves text of links and nothing of pictures.
        ref: the tag or branch that is linked to.

    Example:
        >>> absolute("see [a](docs/a.md#b), ![p](p.png)", "https://host/me/x", "v1")[0]
        'see [a](https://host/me/x/blob/v1/docs/a.md#b), ![p](https://host/me/x/raw/v1/p.png)'
        >>> absolute("see [a](docs/a.md) and [c](https://c.org)", "", "v1")
        ('see a and [c](https://c.org)', 1)
    """
    count = 0

    def made(match: re.Match[str]) -> str:
        nonlocal count
        picture, said, target = match["picture"], match["text"], match["target"]
        if ELSEWHERE.match(target):
            return match[0]
        count += 1
        if url:
            kind = "raw" if picture else "blob"
            return f"{picture}[{said}]({url}/{kind}/{ref}/{target.removeprefix('./')})"
        return "" if picture else said

    parts = CODE.split(text)  # code and what is between in turn
    # A link may have code in its text, which is put back once the links are made.
    held = {f"\0{i}\0": part for i, part in enumerate(parts) if i % 2}
    joined = "".join(f"\0{i}\0" if i % 2 else part for i, part in enumerate(parts))
    found = LINK.sub(made, joined)
    for mark, part in held.items():
        found = found.replace(mark, part)
    return re.sub(r"\n{3,}", "\n\n", found), count


def described(root: Path = ROOT) -> str:
    """README.md as the long description of the package."""
    url, tag = repository(root), f"v{version(root)}"
    text, count = absolute((root / "README.md").read_text(encoding="utf-8"), url, tag)
    if not url:
        print(
            f"readme_links: tool.ddim.repository is empty, so that {count} links of README.md "
            "become text, and pictures are left out",
            file=sys.stderr,
        )
    return text


def addresses(url: str) -> dict[str, str]:
    """The links beside the package's page."""
    if not url:
        return {}
    return {"Repository": url, "Changelog": f"{url}/blob/main/CHANGELOG.md"}


def colab_line(notebook: str, url: str) -> str:
    """The line of a notebook that opens it in Colab; nothing where the repository is not on GitHub.

    Args:
        notebook: its place in the repository.
        url: of the repository.

    Example:
        >>> colab_line("examples/a.ipynb", "https://github.com/me/x")
        '[Open in Colab](https://colab.research.google.com/github/me/x/blob/main/examples/a.ipynb)'
        >>> colab_line("examples/a.ipynb", "")
        ''
    """
    place = url.removeprefix("https://github.com/")
    if place == url:
        return ""
    host = "https://colab.research.google.com/github"
    return f"[Open in Colab]({host}/{place}/blob/main/{notebook})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="the file to write, instead of stdout")
    output = parser.parse_args().write
    text = described()
    if output is None:
        print(text, end="")
        return 0
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
