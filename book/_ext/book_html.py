"""For Sphinx: a figure that is HTML, with number and caption; tables of notebooks, numbered as tables; docstrings of
attributes as they are written; and two mends of what Sphinx writes for screen readers.

```{explorer} generated/runs.html
:name: fig-runs

The caption.
```
"""

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective


class Explorer(SphinxDirective):
    """A file of HTML as a numbered figure."""

    required_arguments = 1
    has_content = True
    option_spec = {"name": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        relative, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(relative)
        figure = nodes.figure("", nodes.raw("", Path(path).read_text(encoding="utf-8"), format="html"))
        held = nodes.Element()
        self.state.nested_parse(self.content, self.content_offset, held)
        text = held.children[0] if held.children else nodes.paragraph()
        figure += nodes.caption(text.rawsource, "", *text.children)
        self.set_source_info(figure)
        self.add_name(figure)
        return [figure]


class TableFigure(nodes.figure):
    """What a notebook makes a figure of, but is a table."""


class NumberedTables(SphinxTransform):
    """Figures whose name begins with ``tab-`` are numbered as tables."""

    default_priority = 200  # before names and numbers are read

    def apply(self, **options: Any) -> None:
        for figure in list(self.document.findall(nodes.figure)):
            if any(name.startswith("tab-") for name in figure["names"]):
                table = TableFigure(figure.rawsource, *figure.children, **figure.attributes)
                table.source, table.line = figure.source, figure.line
                figure.parent.replace(figure, table)
                self.document.ids.update(dict.fromkeys(table["ids"], table))


def begin_table(translator: Any, node: nodes.Element) -> None:
    """In LaTeX, where the environment decides what a caption is called."""
    align = "H" if translator.no_latex_floats else translator.elements["figure_align"]
    translator.body.append(f"\n\\begin{{table}}[{align}]\n\\centering\n\\capstart\n")


def end_table(translator: Any, node: nodes.Element) -> None:
    translator.body.append("\n\\end{table}\n")


def mend(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """The bibliography as plain text blocks: its roles of ARIA are out of date. Empty headings of tables as cells."""
    if body := context.get("body"):
        body = body.replace('<div role="list" class="citation-list">', '<div class="citation-list">')
        body = body.replace(' role="doc-biblioentry"', "")
        context["body"] = re.sub(r'<th class="([^"]*)"><p></p></th>', r'<td class="\1"></td>', body)


WRITTEN: dict[str, list[str]] = {}  # docstrings of attributes before napoleon


def remember(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if what in ("attribute", "data", "property"):
        WRITTEN[name] = list(lines)


def as_written(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Napoleon takes what stands before the first colon of an attribute's docstring for its type, which it is not."""
    if name in WRITTEN:
        lines[:] = WRITTEN.pop(name)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("explorer", Explorer)
    app.add_enumerable_node(TableFigure, "table", latex=(begin_table, end_table))  # in HTML it is a figure
    app.add_transform(NumberedTables)
    app.connect("autodoc-process-docstring", remember, priority=400)
    app.connect("autodoc-process-docstring", as_written, priority=600)
    app.connect("html-page-context", mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
