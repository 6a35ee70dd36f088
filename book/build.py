"""Build the book: run the notebooks, stage its sources, render them as HTML.

    python book/build.py                   run every notebook, then render _build/html/index.html
    python book/build.py --only 02-trust   run this one (and reuse the others as last run), then render
    python book/build.py --html-only       render the notebooks as last run here, or as committed
    python book/build.py --in-place        run every notebook and put its outputs into notebooks/; render nothing
    python book/build.py --pdf             render the notebooks as last run as _build/latex/book.pdf (needs LaTeX)

``--in-place`` takes ``--only`` too. It runs each chapter from nothing, keeps what that cost in
``results/chapters.parquet``, and sees to the cell that installs the library on Colab.

Everything is written below ``_build``; the working tree stays as it is, but for the notebooks and their costs under
``--in-place``. The staged copy keeps the layout of the repository (``book``, ``notebooks``, ``results``, ``tadlib``,
``tadbook``), so a relative path means the same in both. Exit status 1: a notebook failed or wrote to stderr, or Sphinx
had a warning; 2: bad arguments.

``repository.url`` in ``_config.yml`` is the one place that names the repository which readers can reach. As long as
OWNER stands there, pages get no buttons to Binder and Colab: they would lead nowhere.
"""

import argparse
import ast
import importlib
import importlib.metadata
import importlib.util
import os
import re
import resource
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[1]
PLACEHOLDER = "OWNER"  # in the address of a repository that is not public yet
INSTALL = "install"  # tag of the cell that installs the library where it is missing
LATEX = "texlive-xetex texlive-latex-extra texlive-fonts-recommended latexmk xindy fonts-dejavu"  # of Debian
NO_CHAPTERS = ("run",)  # notebooks that are no page: the log of a grid's run
CHECKED = "# NBVAL_CHECK_OUTPUT\n"  # for nbval alone
CAPTION = "caption"  # tag of the cells that hold a figure's caption for readers without the book
COLUMNS = 80  # of code that pages show
KEEP: Any = {"break_long_words": False, "break_on_hyphens": False, "drop_whitespace": True}
BOX = "box"  # tag of the cells that are a box in the book; their first line is its title
# what reads as a link in any Jupyter, and as a numbered reference or a citation in the book
FIGURE_LINK = re.compile(r"\[[^\]]*\]\(#((?:fig|tab)-[\w-]+)\)")
CITATION_LINK = re.compile(r"\[\([^\]]*\)\]\(\.\./book/references\.md#([\w,]+)\)")
# the pages of the API: title and what its modules' names begin with; what fits none is on the first page
API_PAGES: dict[str, tuple[str, ...]] = {
    "api": (),
    "api-labels": ("tadlib.find", "tadlib.noise", "tadlib.trust"),
    "api-distillation": (
        "tadlib.nn",
        "tadlib.experts",
        "tadlib.matching",
        "tadlib.distill",
        "tadlib.evaluate",
        "tadlib.observer",
        "tadlib.students",
    ),
    "api-report": ("tadbook",),
}


class BuildError(Exception):
    """The book cannot be built; the message says why."""


def notebook_paths(root: Path) -> list[Path]:
    """The notebooks of the repository, in reading order (by name)."""
    return sorted((root / "notebooks").glob("*.ipynb"))


def chapter_paths(root: Path) -> list[Path]:
    """Those notebooks that are pages of the book."""
    return [path for path in notebook_paths(root) if path.stem not in NO_CHAPTERS]


def run_notebook(source: Path, target: Path, attempt: Path, *, progress: bool = False) -> tuple[float, float]:
    """Run ``source`` through papermill in ``target``'s folder and write the result to ``target``.

    Returns the seconds it took, and those of processor time in the kernel.
    papermill writes its output file, here ``attempt``, even when a cell fails. ``target`` appears only when every cell
    ran and none wrote to stderr; else ``attempt`` stays to be looked at.
    """
    import papermill
    from traitlets.config import Config

    # Else every kernel starts with a warning on the terminal that its sockets are open to other users of the machine.
    kernel = Config({"KernelManager": {"transport_encryption": "auto"}})
    attempt.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        papermill.execute_notebook(
            source, attempt, kernel_name="python3", cwd=target.parent, progress_bar=progress, config=kernel
        )
    except Exception as error:
        raise BuildError(f"{source.name} failed: {error}\nIts outputs so far: {attempt}") from error
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    notebook = nbformat.read(attempt, as_version=4)
    if noise := stderr_of(notebook):
        raise BuildError(f"{source.name} wrote to stderr, which readers would see:\n{noise}\nIts outputs: {attempt}")
    nbformat.write(without_timings(notebook), target)
    attempt.unlink()
    return seconds, processor


def run_in_place(source: Path, attempt: Path) -> tuple[float, float]:
    """Run ``source`` in its own folder, from nothing, and replace it by the result; what it took, as above.

    What changes from machine to machine is left out.
    """
    shutil.rmtree(source.parent / "runs", ignore_errors=True)  # else stages of an earlier run would cost nothing
    target = source.with_suffix(".executed")
    taken = run_notebook(source, target, attempt)
    notebook = nbformat.read(target, as_version=4)
    notebook.metadata.get("language_info", {}).pop("version", None)
    nbformat.write(notebook, target)
    target.replace(source)
    return taken


def install_source(url: str) -> str:
    """The cell that installs the library from the repository at ``url`` where it is missing, as on Colab."""
    return (
        "# Where the library is missing, as on Colab, install it\n"
        "import importlib.util\n\n"
        'if importlib.util.find_spec("tadlib") is None:\n'
        f'    %pip install --quiet "tadlib[book] @ git+{url}"'
    )


def with_install_cell(notebook: nbformat.NotebookNode, url: str) -> nbformat.NotebookNode:
    """``notebook`` with :func:`install_source` as its first code cell, in place of an older one; hidden in the book."""
    source = install_source(url)
    for cell in notebook.cells:
        if INSTALL in cell.metadata.get("tags", []):
            cell.source = source
            return notebook
    first = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    cell = nbformat.v4.new_code_cell(source, id=INSTALL, metadata={"tags": [INSTALL, "remove-cell"]})
    notebook.cells.insert(first, cell)
    return notebook


def with_captions(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """``notebook`` with the caption of every figure, which the book reads from its metadata, in a cell below it.

    The build leaves these cells out; they are for readers of the file.
    """
    cells = []
    for cell in text_and_code(notebook):
        cells.append(cell)
        if figure := cell.metadata.get("mystnb", {}).get("figure"):
            kind = "Table" if figure["name"].startswith("tab-") else "Figure"
            text = f'<a id="{figure["name"]}"></a>**{kind}.** {figure["caption"]}'
            made = nbformat.v4.new_markdown_cell(text, id=f"{figure['name']}-caption", metadata={"tags": [CAPTION]})
            cells.append(made)
    notebook.cells = cells
    return notebook


def text_and_code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cells of a notebook without its repeated captions."""
    return [cell for cell in notebook.cells if CAPTION not in cell.metadata.get("tags", [])]


def as_myst(cell: nbformat.NotebookNode) -> str:
    """The text of a cell as the book takes it: numbered references and citations for links, and boxes."""
    text = CITATION_LINK.sub(r"{cite:p}`\1`", FIGURE_LINK.sub(r"{numref}`\1`", cell.source))
    if BOX in cell.metadata.get("tags", []):
        title, _, rest = text.partition("\n")
        text = f":::{{admonition}} {title.strip('*')}\n:class: tip\n{rest}\n:::"
    return text


def keep_costs(path: Path, chapter: str, seconds: float, processor_seconds: float) -> None:
    """Put what a chapter took into the table at ``path``, in place of what it took before."""
    import pandas as pd

    from tadlib import store

    machine, versions = store.hardware(), store.versions()
    row = {"chapter": chapter, "seconds": seconds, "processor_seconds": processor_seconds, "hardware": machine["cpu"]}
    row |= {"threads": os.environ.get("OMP_NUM_THREADS", "all"), "cores": machine["cores"]}
    row |= {"torch_version": versions["torch"], "tadlib_version": versions["tadlib"]}
    rows = pd.DataFrame([row])
    if path.exists():
        before = store.load_table(path)
        rows = pd.concat([before[before["chapter"] != chapter], rows])
    store.save_table(path, rows.sort_values("chapter", ignore_index=True))


def stderr_of(notebook: nbformat.NotebookNode) -> str:
    """All that the code cells of an executed notebook wrote to stderr."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stderr")


def without_timings(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """``notebook`` without papermill's notes: times and paths of this machine, which readers would download."""
    for part in [notebook, *notebook.cells]:
        part.metadata.pop("papermill", None)
        part.metadata.pop("execution", None)
    return notebook


def code_of(path: Path) -> list[str]:
    """The sources of the code cells of a notebook, without what is for nbval alone."""
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source.removeprefix(CHECKED) for cell in cells if cell.cell_type == "code"]


def check_executed(sources: Iterable[Path], folder: Path) -> None:
    """See that ``folder`` holds an executed copy of every notebook.

    One that was not run there with the code that it has now is shown with the outputs that it is committed with.
    """
    for source in sources:
        executed = folder / source.name
        if not executed.exists() or code_of(source) != code_of(executed):
            shutil.copy2(source, executed)
            print(f"note: {source.name} is shown as committed; make book runs it", flush=True)


def dress(source: Path, executed: Path, note: str) -> None:
    """Make an executed notebook (in place) what readers see: its text as in ``source`` now, ``note`` under title and
    question.

    Text needs no new run, so a change of it is taken over where the code cells are the same. A comment for nbval goes,
    and the empty heading that pandas writes over an index, which a screen reader would announce, becomes a plain cell.
    """
    committed, notebook = (nbformat.read(path, as_version=4) for path in (source, executed))
    for part in (committed, notebook):
        part.cells = text_and_code(part)
    if [cell.cell_type for cell in committed.cells] == [cell.cell_type for cell in notebook.cells]:
        for cell, now in zip(notebook.cells, committed.cells):
            cell.metadata = now.metadata
            if cell.cell_type == "markdown":
                cell.source = as_myst(now)
    first, title_now = notebook.cells[0], committed.cells[0]
    if first.cell_type == title_now.cell_type == "markdown":
        first.source = as_myst(title_now)  # whatever else has changed; without the note of an earlier rendering
    if note and first.cell_type == "markdown" and "\n\n" in first.source:
        title, question, *rest = first.source.split("\n\n")
        first.source = "\n\n".join([title, question, note, *rest])
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.source = cell.source.removeprefix(CHECKED)
        for output in cell.outputs:
            data = output.get("data", {})
            if "text/html" in data:
                data["text/html"] = data["text/html"].replace("<th></th>", "<td></td>")
    nbformat.write(notebook, executed)


def stage(root: Path, staged: Path) -> None:
    """Copy the book's sources below ``staged``; what was executed there stays, all else there is replaced."""
    for old in staged.glob("*"):
        if old.name != "notebooks":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    names = {path.name for path in chapter_paths(root)}
    for orphan in (staged / "notebooks").glob("*.ipynb"):
        if orphan.name not in names:
            orphan.unlink()
    (staged / "notebooks").mkdir(parents=True, exist_ok=True)
    ignore = shutil.ignore_patterns("build.py", "collect.py", "__pycache__", ".*", "_*", "generated")
    for folder in ("book", "results"):
        if (root / folder).is_dir():
            shutil.copytree(root / folder, staged / folder, ignore=ignore)
    for folder in ("_static", "_ext", "_templates", "_latex"):
        if (root / "book" / folder).is_dir():
            shutil.copytree(root / "book" / folder, staged / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for package in ("tadlib", "tadbook"):  # pages show their code
        if (root / package).is_dir():
            shutil.copytree(root / package, staged / package, ignore=shutil.ignore_patterns("__pycache__"))
    narrow([path for shown in ("book", "tadlib", "tadbook") for path in (staged / shown).rglob("*.py")])
    copy_mathjax(staged / "extra" / "mathjax")
    shutil.copy2(root / "_toc.yml", staged)
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    if PLACEHOLDER in repository_url(config):
        without_launch_buttons(config)
    (staged / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def narrow(paths: Sequence[Path]) -> None:
    """Lay out code that pages show for ``COLUMNS`` columns, in place; without ruff it stays as wide as it is."""
    if not paths or importlib.util.find_spec("ruff") is None:
        return
    for path in paths:
        path.write_text(narrow_text(path.read_text(encoding="utf-8")), encoding="utf-8")
    command = [sys.executable, "-m", "ruff", "format", "--quiet", "--isolated", "--line-length", str(COLUMNS)]
    subprocess.run([*command, *map(str, paths)], check=True)


def narrow_text(code: str) -> str:
    """``code`` with docstrings and comments broken at ``COLUMNS``, which a formatter leaves alone.

    A line that is indented within a docstring, such as a formula, goes on with a deeper indentation.
    """
    lines = code.splitlines()
    tree = ast.parse(code)
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            docstring = node.body[0]
            inside |= {*range(docstring.lineno - 1, docstring.end_lineno or docstring.lineno)}
    broken: list[str] = []
    for number, line in enumerate(lines):
        bare = line.lstrip()
        indent = line[: len(line) - len(bare)]
        if len(line) <= COLUMNS or not (number in inside or bare.startswith("#")):
            broken.append(line)
            continue
        mark, text = ("# ", bare.removeprefix("# ")) if bare.startswith("#") else ("", bare)
        broken += textwrap.wrap(text, COLUMNS, initial_indent=indent + mark, subsequent_indent=indent + mark, **KEEP)
    return "\n".join(broken) + "\n"


def copy_mathjax(target: Path) -> None:
    """Copy MathJax with its fonts below ``target``, so that formulas need no network, not even on a reader's disk.

    The package is made to be a Sphinx extension, which would ship every variant of MathJax, 24 MB; this one is 2 MB.
    """
    for file in importlib.metadata.files("sphinx-mathjax-offline") or ():
        _, _, path = file.as_posix().partition("/static/mathjax/")
        if path == "tex-mml-chtml.js" or path.startswith("output/chtml/fonts/woff-v2/"):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file.locate(), target / path)


def repository_url(config: dict) -> str:
    """Where readers find the repository, as Jupyter Book's ``config`` says; the placeholder where it does not."""
    return config.get("repository", {}).get("url") or PLACEHOLDER


def without_launch_buttons(config: dict) -> None:
    """Take from ``config`` (Jupyter Book's, changed in place) all that would link to a repository."""
    config["repository"] = {"url": ""}
    config.setdefault("html", {})["use_repository_button"] = False
    for name in ("binderhub_url", "colab_url"):
        config.setdefault("launch_buttons", {}).pop(name, None)


def write_generated(root: Path, target: Path) -> None:
    """Write the generated parts of pages: API, tables and pictures of results, the rules for contributors."""
    target.mkdir(parents=True, exist_ok=True)
    for name, text in api_pages(root / "tadlib", root / "tadbook").items():
        (target / f"{name}.md").write_text(text, encoding="utf-8")
    if (root / "CONTRIBUTING.md").exists():
        title, _, rest = (root / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("\n")
        (target / "contributing.md").write_text(rest, encoding="utf-8")
    if (root / "tadbook").exists():
        tadbook = importlib.import_module("tadbook")
        tadbook.write_book_tables(root / "results", target)
        tadbook.write_published(root / "book" / "published", target)
        tadbook.write_book_pictures(root / "results", target)
        tadbook.write_own_images(root / "results", target)
        tadbook.write_speed(root / "results", target)


def api_pages(*packages: Path) -> dict[str, str]:
    """The text of each of ``API_PAGES``: an autodoc section for every public module, so that none can be forgotten."""
    sections: dict[str, dict[str, str]] = {page: {} for page in API_PAGES}
    for path in sorted(path for package in packages for path in package.rglob("*.py")):
        parts = path.relative_to(packages[0].parent).with_suffix("").parts
        if parts[-1] == "__init__":
            # What a package re-exports is documented where it is defined; a second target would make it ambiguous.
            parts, options = parts[:-1], ""
        elif any(part.startswith("_") for part in parts):
            continue
        else:
            options = "   :members:\n"
        name = ".".join(parts)
        page = next((p for p, own in API_PAGES.items() if f"{name}.".startswith(tuple(f"{m}." for m in own))), "api")
        sections[page][name] = f"## `{name}`\n\n```{{eval-rst}}\n.. automodule:: {name}\n{options}```\n"
    return {page: "\n".join(own[name] for name in sorted(own)) for page, own in sections.items()}


def jupyter_book(root: Path, staged: Path, *options: str) -> int:
    """``jupyter-book build`` of ``staged`` into ``_build``; returns its exit status."""
    # Sphinx repeats no warning of a page that it does not read again: a second build would pass where the first failed.
    shutil.rmtree(root / "_build" / ".doctrees", ignore_errors=True)
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(staged)]
    return subprocess.run([*command, "--path-output", str(root), "-q", *options], cwd=root).returncode


def render(root: Path, staged: Path) -> Path:
    """Render ``staged`` to ``_build/html`` with every Sphinx warning an error; return the path of index.html."""
    build = root / "_build"
    shutil.rmtree(build / "html", ignore_errors=True)
    status = jupyter_book(root, staged, "-W", "-n", "--keep-going")
    index = build / "html" / "index.html"
    if status != 0 or not index.exists():
        raise BuildError("Sphinx could not render the book, or had warnings; see above")
    toc = yaml.safe_load((staged / "_toc.yml").read_text(encoding="utf-8"))
    missing = [page for page in toc_pages(toc) if not (build / "html" / f"{page}.html").exists()]
    if missing:
        raise BuildError(f"pages of _toc.yml that were not rendered: {', '.join(missing)}")
    return index


def toc_pages(toc: dict) -> list[str]:
    """The pages that a table of contents names, in its order (no suffixes)."""
    pages = [toc[key] for key in ("root", "file") if key in toc]
    for key in ("parts", "chapters", "sections"):
        for entry in toc.get(key, []):
            pages += toc_pages(entry)
    return [page.removesuffix(".md").removesuffix(".ipynb") for page in pages]


def render_pdf(root: Path, staged: Path) -> Path:
    """Render ``staged`` to ``_build/latex`` and typeset it; return the path of the PDF.

    Sphinx's warnings are no errors here: what is made for a screen (buttons, figures to look around in) has none on
    paper.
    """
    if shutil.which("xelatex") is None or shutil.which("latexmk") is None:
        raise BuildError(f"the PDF needs LaTeX: apt-get install {LATEX}")
    shutil.rmtree(root / "_build" / "latex", ignore_errors=True)
    status = jupyter_book(root, staged, "--builder", "pdflatex")
    pdf = root / "_build" / "latex" / "book.pdf"
    if status or not pdf.exists():  # where LaTeX stops half-way there is a PDF all the same
        raise BuildError("LaTeX stopped at an error; see _build/latex/book.log")
    return pdf


def prepare(root: Path, *, only: str | None = None, rerun: bool = True) -> Path:
    """Stage the book of the repository at ``root`` with its notebooks run; return the folder."""
    staged = root / "_build" / "src"
    sources = chapter_paths(root)
    stage(root, staged)
    write_generated(root, staged / "book" / "generated")
    chosen = [path for path in sources if only in (None, path.stem)] if rerun else []
    if chosen:
        # On a new machine matplotlib announces on stderr that it looks for fonts: let it do so before any notebook.
        importlib.import_module("matplotlib.font_manager")
    for path in chosen:
        print(f"running {path.name}", flush=True)
        target, attempt = staged / "notebooks" / path.name, root / "_build" / "attempts" / path.name
        seconds, _ = run_notebook(path, target, attempt, progress=sys.stderr.isatty())
        print(f"ran {path.name} in {seconds:.1f} s", flush=True)
    check_executed(sources, staged / "notebooks")
    for path in sources:
        note = ""
        if (root / "tadbook").exists():
            note = importlib.import_module("tadbook").chapter_note(root / "results", path.stem)
        dress(path, staged / "notebooks" / path.name, note)
    return staged


def build_in_place(root: Path, only: str | None = None) -> None:
    """Run the notebooks of the repository at ``root`` and keep their outputs and what they cost."""
    importlib.import_module("matplotlib.font_manager")
    url = repository_url(yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8")))
    for path in notebook_paths(root):
        if only not in (None, path.stem):
            continue
        if path in chapter_paths(root):
            notebook = with_captions(nbformat.read(path, as_version=4))
            nbformat.write(with_install_cell(notebook, url), path)
        seconds, processor = run_in_place(path, root / "_build" / "attempts" / path.name)
        if path in chapter_paths(root):
            keep_costs(root / "results" / "chapters.parquet", path.stem, seconds, processor)
        print(f"ran {path.name} in {seconds:.1f} s ({processor:.1f} s of processor time)", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Run the notebooks and render the book to _build/html/index.html.")
    names = [path.stem for path in notebook_paths(ROOT)]
    parser.add_argument("--only", metavar="NAME", type=lambda name: Path(name).stem, choices=names, help="run this one")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--html-only", action="store_true", help="run none: render the notebooks as last run")
    choice.add_argument("--pdf", action="store_true", help="run none: make a PDF of the notebooks as last run")
    choice.add_argument("--in-place", action="store_true", help="replace the notebooks; render nothing")
    options = parser.parse_args(arguments)
    if options.only and (options.html_only or options.pdf):
        parser.error("--only names a notebook to run; --html-only and --pdf run none")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the kernels: networks this small run faster on one thread
    try:
        if options.in_place:
            build_in_place(ROOT, options.only)
            return 0
        staged = prepare(ROOT, only=options.only, rerun=not (options.html_only or options.pdf))
        print(f"the book: {render_pdf(ROOT, staged) if options.pdf else render(ROOT, staged)}")
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
