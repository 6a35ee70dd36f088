# Needs Python >= 3.11 (with venv), make and git; everything else is installed into .venv from requirements.lock.
#
#   make book     run the notebooks and render _build/html/index.html
#   make test     pytest, then every notebook again under nbval
#   make lint     ruff and mypy
#   make format   let ruff rewrite what it can
#   make notebooks  run the notebooks and keep their outputs in notebooks/, to be committed
#   make pdf      render the notebooks as last run to _build/latex/book.pdf (needs LaTeX)
#   make slides   slides of the chapters, as committed, to _build/slides; they need no network
#   make tables   write the table of results in README.md
#   make grid GRID=smoke       run a grid (grids/*.yml), or go on with it; DATA= CORES= GPUS= PROFILE= OUT=
#   make grid-plan GRID=smoke  only show what is done and what would be run
#   make grid-kill-test        kill a grid's run ten times and compare with one that nobody disturbed; minutes
#   make slurm-test            run a grid on a SLURM of its own; root on Debian
#   make env      only the environment
#   make lock     new requirements.lock from pyproject.toml (UPGRADE=1: newest versions that its ranges allow)
#   make clean    remove _build

PYTHON ?= python3
BIN := .venv/bin

# The environment is up to date when it holds a stamp named after the two files that it is made from.
STAMP := .venv/installed-$(shell cat requirements.lock pyproject.toml | git hash-object --stdin)

# Networks this small run faster on one thread than on two.
OMP_NUM_THREADS ?= 1
export OMP_NUM_THREADS

# Tests run side by side, one thread each.
JOBS ?= $(shell $(PYTHON) -c 'import os; print(min(4, os.cpu_count() or 1))')

GRID ?= smoke
OUT ?= runs
PROFILE ?= local
CORES ?= 1
DATA ?= $(TADLIB_DATA_ROOT)
GRID_RUN = $(BIN)/python -m workflow $(GRID) --out $(OUT) --profile $(PROFILE) --cores $(CORES) \
  $(if $(DATA),--root $(DATA)) $(if $(GPUS),--gpus $(GPUS))

.PHONY: book html pdf slides notebooks tables grid grid-plan grid-kill-test slurm-test test lint format env lock clean

book: $(STAMP)
	$(BIN)/python book/build.py

html: $(STAMP)
	$(BIN)/python book/build.py --html-only

pdf: $(STAMP)
	$(BIN)/python book/build.py --pdf

slides: $(STAMP)
	$(BIN)/python book/slides.py

notebooks: $(STAMP)
	$(BIN)/python book/build.py --in-place

tables: $(STAMP)
	$(BIN)/python -c 'import tadbook; tadbook.write_readme_table("results", "README.md")'

grid: $(STAMP)
	$(GRID_RUN)

grid-plan: $(STAMP)
	$(GRID_RUN) --plan

grid-kill-test: $(STAMP)
	$(BIN)/python tests/kill_grid.py

slurm-test: $(STAMP)
	tests/slurm.sh

test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadscope
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --nbval-lax --nbval-sanitize-with tests/nbval.cfg notebooks

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

env: $(STAMP)

# --no-build-isolation: the build backend comes from requirements.lock too.
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) must be Python >= 3.11; name another one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "installing requirements.lock into .venv (about 6 GB with torch's CUDA libraries)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	@rm -f .venv/installed-*
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# uv resolves for every platform at once and writes no address of a registry; pip installs the result.
lock:
	@test -x $(BIN)/uv || $(MAKE) env
	$(BIN)/uv pip compile --quiet $(if $(UPGRADE),--upgrade) --universal --all-extras --python-version 3.11 \
	  --fork-strategy fewest --no-annotate --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

clean:
	rm -rf _build
