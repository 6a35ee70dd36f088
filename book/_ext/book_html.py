"""For Sphinx: a figure that is HTML, with number and caption; and two mends of what Sphinx writes for screen readers.

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


def mend(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """The bibliography as plain text blocks: its roles of ARIA are out of date. Empty headings of tables as cells."""
    if body := context.get("body"):
        body = body.replace('<div role="list" class="citation-list">', '<div class="citation-list">')
        body = body.replace(' role="doc-biblioentry"', "")
        context["body"] = re.sub(r'<th class="([^"]*)"><p></p></th>', r'<td class="\1"></td>', body)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("explorer", Explorer)
    app.connect("html-page-context", mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
