"""Build the book: run the notebooks, stage its sources, render them as HTML.

    python book/build.py                   run every notebook, then render _build/html/index.html
    python book/build.py --only 02_trust   run this one (and reuse the others as last run), then render
    python book/build.py --html-only       render the notebooks as last run
    python book/build.py --in-place        run every notebook and put its outputs into notebooks/; render nothing

Everything is written below ``_build``; the working tree stays as it is, but for the notebooks under ``--in-place``.
The staged copy keeps the layout of the repository (``book``, ``notebooks``, ``results``), so a relative path means the
same in both. Exit status 1: a notebook failed or wrote to stderr, or Sphinx had a warning; 2: bad arguments.

``TADLIB_REPOSITORY_URL`` (optional) names the repository that readers can reach: with it the pages get buttons that
open a notebook on Binder and Colab.
"""

import argparse
import importlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[1]


class BuildError(Exception):
    """The book cannot be built; the message says why."""


def notebook_paths(root: Path) -> list[Path]:
    """The notebooks of the repository, in reading order (by name)."""
    return sorted((root / "notebooks").glob("*.ipynb"))


def run_notebook(source: Path, target: Path, attempt: Path, *, progress: bool = False) -> float:
    """Run ``source`` through papermill in ``target``'s folder and write the result to ``target``; return the seconds.

    papermill writes its output file, here ``attempt``, even when a cell fails. ``target`` appears only when every cell
    ran and none wrote to stderr; else ``attempt`` stays to be looked at.
    """
    import papermill
    from traitlets.config import Config

    # Else every kernel starts with a warning on the terminal that its sockets are open to other users of the machine.
    kernel = Config({"KernelManager": {"transport_encryption": "auto"}})
    attempt.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    started = time.perf_counter()
    try:
        papermill.execute_notebook(
            source, attempt, kernel_name="python3", cwd=target.parent, progress_bar=progress, config=kernel
        )
    except Exception as error:
        raise BuildError(f"{source.name} failed: {error}\nIts outputs so far: {attempt}") from error
    seconds = time.perf_counter() - started
    notebook = nbformat.read(attempt, as_version=4)
    if noise := stderr_of(notebook):
        raise BuildError(f"{source.name} wrote to stderr, which readers would see:\n{noise}\nIts outputs: {attempt}")
    nbformat.write(without_timings(notebook), target)
    attempt.unlink()
    return seconds


def run_in_place(source: Path, attempt: Path) -> float:
    """Run ``source`` in its own folder and replace it by the result, without what changes from machine to machine."""
    target = source.with_suffix(".executed")
    seconds = run_notebook(source, target, attempt)
    notebook = nbformat.read(target, as_version=4)
    notebook.metadata.get("language_info", {}).pop("version", None)
    nbformat.write(notebook, target)
    target.replace(source)
    return seconds


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
    """The sources of the code cells of a notebook."""
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def check_executed(sources: Iterable[Path], folder: Path) -> None:
    """Raise :class:`BuildError` unless ``folder`` holds an executed copy of every notebook; tell which are outdated."""
    for source in sources:
        executed = folder / source.name
        if not executed.exists():
            raise BuildError(f"{source.name} has not been run yet: python book/build.py --only {source.stem}")
        if code_of(source) != code_of(executed):
            print(f"note: {source.name} has changed since it was run", flush=True)


def stage(root: Path, staged: Path) -> None:
    """Copy the book's sources below ``staged``; what was executed there stays, all else there is replaced."""
    for old in staged.glob("*"):
        if old.name != "notebooks":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    names = {path.name for path in notebook_paths(root)}
    for orphan in (staged / "notebooks").glob("*.ipynb"):
        if orphan.name not in names:
            orphan.unlink()
    (staged / "notebooks").mkdir(parents=True, exist_ok=True)
    ignore = shutil.ignore_patterns("*.py", "__pycache__", ".*", "_static", "generated")
    for folder in ("book", "results"):
        if (root / folder).is_dir():
            shutil.copytree(root / folder, staged / folder, ignore=ignore)
    if (root / "book" / "_static").is_dir():
        shutil.copytree(root / "book" / "_static", staged / "_static")
    copy_mathjax(staged / "extra" / "mathjax")
    shutil.copy2(root / "_toc.yml", staged)
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    if url := os.environ.get("TADLIB_REPOSITORY_URL"):
        add_launch_buttons(config, url)
    (staged / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def copy_mathjax(target: Path) -> None:
    """Copy MathJax with its fonts below ``target``, so that formulas need no network, not even on a reader's disk.

    The package is made to be a Sphinx extension, which would ship every variant of MathJax, 24 MB; this one is 2 MB.
    """
    for file in importlib.metadata.files("sphinx-mathjax-offline") or ():
        _, _, path = file.as_posix().partition("/static/mathjax/")
        if path == "tex-mml-chtml.js" or path.startswith("output/chtml/fonts/woff-v2/"):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file.locate(), target / path)


def add_launch_buttons(config: dict, url: str) -> None:
    """Let ``config`` (Jupyter Book's, changed in place) link every notebook in the repository at ``url``."""
    config["repository"] = {"url": url, "branch": os.environ.get("TADLIB_REPOSITORY_BRANCH", "main")}
    config.setdefault("html", {})["use_repository_button"] = True
    config.setdefault("launch_buttons", {}).update(
        {"binderhub_url": "https://mybinder.org", "colab_url": "https://colab.research.google.com"}
    )


def write_generated(root: Path, target: Path) -> None:
    """Write the pages' generated parts, each to be {include}d: the API of every module and the tables of results."""
    target.mkdir(parents=True, exist_ok=True)
    (target / "api.md").write_text(api_page(root / "tadlib"), encoding="utf-8")
    if (root / "tadlib" / "report").exists():
        importlib.import_module("tadlib.report").write_book_tables(root / "results", target)


def api_page(package: Path) -> str:
    """One autodoc section for every public module of ``package``, so that no module can be forgotten."""
    modules = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        if parts[-1] == "__init__":
            # What a package re-exports is documented where it is defined; a second target would make it ambiguous.
            modules.append((".".join(parts[:-1]), ""))
        elif not any(part.startswith("_") for part in parts):
            modules.append((".".join(parts), "   :members:\n"))
    return "\n".join(
        f"## `{name}`\n\n```{{eval-rst}}\n.. automodule:: {name}\n{options}```\n" for name, options in sorted(modules)
    )


def render(root: Path, staged: Path) -> Path:
    """Render ``staged`` to ``_build/html`` with every Sphinx warning an error; return the path of index.html."""
    build = root / "_build"
    # Sphinx repeats no warning of a page that it does not read again: a second build would pass where the first failed.
    for old in (build / "html", build / ".doctrees"):
        shutil.rmtree(old, ignore_errors=True)
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(staged)]
    options = ["--path-output", str(root), "-W", "-n", "--keep-going", "-q"]
    done = subprocess.run(command + options, cwd=root)
    index = build / "html" / "index.html"
    if done.returncode != 0 or not index.exists():
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


def build(root: Path, *, only: str | None = None, html_only: bool = False) -> Path:
    """Build the book of the repository at ``root``; return the path of its index.html."""
    staged = root / "_build" / "src"
    sources = notebook_paths(root)
    stage(root, staged)
    write_generated(root, staged / "book" / "generated")
    chosen = [] if html_only else [path for path in sources if only in (None, path.stem)]
    if chosen:
        # On a new machine matplotlib announces on stderr that it looks for fonts: let it do so before any notebook.
        importlib.import_module("matplotlib.font_manager")
    for path in chosen:
        print(f"running {path.name}", flush=True)
        target, attempt = staged / "notebooks" / path.name, root / "_build" / "attempts" / path.name
        seconds = run_notebook(path, target, attempt, progress=sys.stderr.isatty())
        print(f"ran {path.name} in {seconds:.1f} s", flush=True)
    check_executed(sources, staged / "notebooks")
    return render(root, staged)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Run the notebooks and render the book to _build/html/index.html.")
    choice = parser.add_mutually_exclusive_group()
    names = [path.stem for path in notebook_paths(ROOT)]
    choice.add_argument("--only", metavar="NAME", type=lambda name: Path(name).stem, choices=names, help="run this one")
    choice.add_argument("--html-only", action="store_true", help="run none: render the notebooks as last run")
    choice.add_argument("--in-place", action="store_true", help="run all and replace the notebooks; render nothing")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the kernels: networks this small run faster on one thread
    try:
        if options.in_place:
            importlib.import_module("matplotlib.font_manager")
            for path in notebook_paths(ROOT):
                seconds = run_in_place(path, ROOT / "_build" / "attempts" / path.name)
                print(f"ran {path.name} in {seconds:.1f} s", flush=True)
            return 0
        print(f"the book: {build(ROOT, only=options.only, html_only=options.html_only)}")
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
