"""Mathematics as MathML, which browsers draw by themselves: no script, no font from elsewhere."""

from __future__ import annotations

import html
import re
from xml.etree import ElementTree

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

SPACE = "http://www.w3.org/1998/Math/MathML"
ACCENTS = "ˉˆ˜^~¯"
ElementTree.register_namespace("", SPACE)


def mathml(tex: str, block: bool) -> str:
    """A formula of LaTeX as a ``<math>`` element.

    Raises:
        ExtensionError: what the converter does not know, with the formula.
    """
    try:
        text = tex2mathml(tex, as_block=block)
    except MathError as error:
        raise ExtensionError(f"cannot convert {tex!r}: {error}") from None
    # XML knows five names of characters; HTML's other ones are written out.
    text = re.sub(r"&(?!amp;|lt;|gt;|quot;|apos;)\w+;", lambda m: html.unescape(m[0]), text)
    root = ElementTree.fromstring(text)
    for element in root.iter(f"{{{SPACE}}}munderover"):
        _beside(element)
    return ElementTree.tostring(root, encoding="unicode")


def _beside(element: ElementTree.Element) -> None:
    """Put the index of an accented letter beside it; the converter puts it below."""
    letter, index, accent = element
    if (accent.text or "").strip() not in ACCENTS:
        return
    accented = ElementTree.Element(f"{{{SPACE}}}mover", {"accent": "true"})
    accented.extend([letter, accent])
    element.tag = f"{{{SPACE}}}msub"
    element[:] = [accented, index]


def visit_inline(self, node: nodes.math) -> None:
    """A formula within a line."""
    self.body.append(mathml(node.astext(), block=False))
    raise nodes.SkipNode


def visit_block(self, node: nodes.math_block) -> None:
    """A formula on lines of its own, with its number where it has one."""
    self.body.append(self.starttag(node, "div", CLASS="math"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({node["number"]})</span>')
    self.body.append(mathml(node.astext(), block=True))
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer ``mathml``."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
