"""Slides of the chapters: reveal.js, from the notebooks as they are committed, in a folder that needs no network.

    python book/slides.py [NAME ...]    write _build/slides/NAME.html, of all chapters by default

The metadata ``slideshow.slide_type`` of a cell, which Jupyter's property inspector sets, says where it stands: slide,
subslide (below it), fragment, ``-`` (continues), notes or skip. A cell without it continues, if it is text, a figure or
visible code; set-up and folded code are left out. On a slide, headings, formulas, lists, tables and code are shown;
paragraphs become notes (key S).
"""

import re
import shutil
import sys
from importlib import resources
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).parent))
from build import CAPTION, ROOT, BuildError, chapter_paths, copy_mathjax

HIDDEN = {"install", "remove-cell", "parameters"}  # tags of cells that are no slide
LINES = 3  # of code that fit on a slide with a figure
FOLDED = {"hide-input", "remove-input"}  # tags of cells of which only the output is shown
SHOWN = re.compile(r"#|\$\$|[-*] |\d+\. |\||```|<a id|\*\*Key points|\*\*After this|\*[^*]")


def parts(source: str) -> tuple[str, str]:
    """What of a cell's text stands on the slide, and what in its notes."""
    folded = re.findall(r"<details>.*?</details>", source, re.S)  # answers
    blocks = re.split(r"\n\s*\n", re.sub(r"<details>.*?</details>", "", source, flags=re.S).strip())
    shown = [block for block in blocks if SHOWN.match(block)]
    return "\n\n".join(shown), "\n\n".join([*(block for block in blocks if not SHOWN.match(block)), *folded])


def as_slides(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """``notebook`` with the type of every cell filled in, and paragraphs moved to cells of notes."""
    cells: list[nbformat.NotebookNode] = []
    held: list[nbformat.NotebookNode] = []  # notes that lead up to the next slide
    for cell in notebook.cells:
        tags, kind = set(cell.metadata.get("tags", [])), cell.metadata.get("slideshow", {}).get("slide_type")
        if tags & HIDDEN or kind == "skip" or (kind is None and tags & FOLDED and not cell.outputs):
            continue
        if cell.cell_type == "code":
            if tags & FOLDED:
                cell.source = ""
            cell.source = cell.source.removeprefix("# NBVAL_CHECK_OUTPUT\n")
            made = [typed(cell, kind or "-")]
            drawn = any({"image/png", "text/html"} & {*output.get("data", {})} for output in cell.outputs)
            if drawn and cell.source.count("\n") >= LINES:
                code = nbformat.v4.new_code_cell(cell.source, id=f"{cell.id[:58]}-code")
                cell.source = ""  # code and figure do not fit on one slide
                made = [typed(code, kind or "-"), typed(cell, "subslide")]
            if not cell.source:
                cell.metadata["transient"] = {"remove_source": True}  # else nbconvert leaves an empty box
            cells += [made[0], *held, *made[1:]]
            held = []
            continue
        shown, notes = (cell.source, "") if CAPTION in tags else parts(cell.source)
        if shown:
            cells += [typed(nbformat.v4.new_markdown_cell(shown, id=cell.id), kind or "-"), *held]
            held = []
        elif kind in ("slide", "subslide"):
            raise BuildError(f"cell {cell.id} opens a slide and has nothing to show there")
        if notes:
            note = typed(nbformat.v4.new_markdown_cell(notes, id=f"{cell.id[:57]}-notes"), "notes")
            (cells if shown else held).append(note)
    notebook.cells = cells
    return notebook


def typed(cell: nbformat.NotebookNode, kind: str) -> nbformat.NotebookNode:
    """``cell`` with its type of slide."""
    cell.metadata["slideshow"] = {"slide_type": kind}
    return cell


def write(path: Path, folder: Path) -> Path:
    """The slides of the notebook at ``path``, in ``folder``."""
    from nbconvert import SlidesExporter
    from traitlets.config import Config

    options = Config({"SlidesExporter": {"template_name": "_slides", "exclude_input_prompt": True}})
    options.SlidesExporter.extra_template_basedirs = [str(ROOT / "book")]
    options.SlidesExporter.exclude_output_prompt = True
    options.SlidesExporter.reveal_url_prefix = "reveal"
    options.SlidesExporter.reveal_theme = "white"  # whose fonts lie beside it
    notebook = as_slides(nbformat.read(path, as_version=4))
    body, _ = SlidesExporter(config=options).from_notebook_node(notebook, {"metadata": {"name": path.stem}})
    target = folder / f"{path.stem}.html"
    target.write_text(body, encoding="utf-8")
    return target


def main(names: list[str]) -> int:
    """Write the slides of the chapters ``names``; returns the exit status."""
    folder = ROOT / "_build" / "slides"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        reveal = resources.files("sphinx_revealjs") / "_static" / "revealjs"
        with resources.as_file(reveal) as source:
            for part in ("dist", "plugin/notes"):
                shutil.copytree(source / part, folder / "reveal" / part, ignore=shutil.ignore_patterns("*.map"))
        copy_mathjax(folder / "mathjax")
        for path in chapter_paths(ROOT):
            if not names or path.stem in names:
                print(f"slides: {write(path, folder)}")
    except ImportError as error:
        print(f'error: slides need the extra: pip install "tadlib[slides]" ({error})', file=sys.stderr)
        return 1
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
