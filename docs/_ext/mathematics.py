"""Mathematics as MathML, which browsers draw by themselves: no script, no font from elsewhere."""

from __future__ import annotations

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError


def mathml(tex: str, block: bool) -> str:
    """A formula of LaTeX as a ``<math>`` element.

    Raises:
        ExtensionError: what the converter does not know, with the formula.
    """
    try:
        return tex2mathml(tex, as_block=block)
    except MathError as error:
        raise ExtensionError(f"cannot convert {tex!r}: {error}") from None


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
