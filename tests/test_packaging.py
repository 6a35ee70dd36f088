"""The files that install, cite and describe the project agree with one another and with the code."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]
# What only the command line, the figures, the book and the tests may import.
OUTSIDE_CORE = (
    *("tyro", "matplotlib", "seaborn", "papermill", "nbformat", "IPython", "ipykernel", "pytest", "cleanlab"),
    *("yaml", "snakemake"),
)
NOT_CORE = re.compile(r"tadlib\.cli\b")


def declared() -> list[Requirement]:
    """Every requirement of pyproject.toml, of the library and of all its extras."""
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(line) for line in [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]]


def test_lock_pins_every_package_exactly_and_names_no_address():
    for line in LOCK:
        assert re.fullmatch(r"[a-z0-9.-]+==[^\s=*]+( ; .+)?", line), line
    assert "://" not in (ROOT / "requirements.lock").read_text()


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_lock_holds_each_requirement_within_its_range(requirement):
    pins = [pin for pin in map(Requirement, LOCK) if pin.name == canonicalize_name(requirement.name)]
    assert pins, f"{requirement.name} is missing from requirements.lock: make lock"
    for pin in pins:
        (version,) = [clause.version for clause in pin.specifier]
        assert requirement.specifier.contains(version, prereleases=True), f"{pin} is outside {requirement}: make lock"


def test_installed_versions_are_those_of_the_lock():
    for pin in map(Requirement, LOCK):
        if pin.marker is None or pin.marker.evaluate():
            installed = importlib.metadata.version(pin.name)
            assert pin.specifier.contains(installed, prereleases=True), f"{pin.name} {installed}, expected {pin}"


def test_conda_environment_installs_the_same_package():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in entries if isinstance(entry, dict)]
    assert pip == ["-r requirements.lock", "-e ."]
    conda = {re.split(r"[<>=]", entry)[0] for entry in entries if isinstance(entry, str)}
    assert conda == {"python", "pip"}, "a package named here could drift from the lock"


def test_version_is_the_same_everywhere():
    import tadlib

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert tadlib.__version__ == PROJECT["version"] == citation["version"]


def test_command_is_installed():
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="tad")
    assert callable(entry.load())


def test_citation_names_the_paper():
    (paper,) = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    assert paper["title"] == "Trust-Aware Diversion for Data-Effective Distillation"
    assert paper["identifiers"][0]["value"] == "arXiv:2502.05027"


def test_core_imports_without_the_packages_of_command_line_and_book():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "tadlib").rglob("*.py")]
    core = sorted(name.removesuffix(".__init__") for name in modules if not NOT_CORE.match(name))
    script = f"""
import importlib, sys
for name in {OUTSIDE_CORE}:
    sys.modules[name] = None  # importing it now raises ImportError
for name in {core}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
