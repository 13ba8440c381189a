"""Pages below ``zh/``: they say that they are Chinese, and a new line in the source is no space."""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx

_MARKS = "\u3000-\u303f\uff00-\uffef\u201c\u201d\u2018\u2019"
_LETTERS = _MARKS + "\u4e00-\u9fff"
_BREAK = re.compile(rf"(?<=[{_MARKS}])\n|\n(?=[{_MARKS}])|(?<=[{_LETTERS}])\n(?=[{_LETTERS}])")


def set_language(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """The page's language, in place of the site's."""
    if pagename.startswith("zh/"):
        context["language"] = "zh-CN"


def join_lines(app: Sphinx, doctree: nodes.document) -> None:
    """Remove the breaks of lines between Chinese characters, which browsers draw as spaces."""
    if not app.env.docname.startswith("zh/"):
        return
    for text in list(doctree.findall(nodes.Text)):
        if not isinstance(text.parent, nodes.FixedTextElement):
            text.parent.replace(text, nodes.Text(_BREAK.sub("", text)))


def setup(app: Sphinx) -> dict[str, bool]:
    """Listen to every page."""
    app.connect("html-page-context", set_language)
    app.connect("doctree-read", join_lines)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
