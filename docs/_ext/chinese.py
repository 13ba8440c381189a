"""Pages below ``zh/`` say in their HTML that they are Chinese, for fonts, readers and searches."""

from __future__ import annotations

from sphinx.application import Sphinx


def set_language(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """The page's language, in place of the site's."""
    if pagename.startswith("zh/"):
        context["language"] = "zh-CN"


def setup(app: Sphinx) -> dict[str, bool]:
    """Listen to every page."""
    app.connect("html-page-context", set_language)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
