"""Grids: many cells from one small file, run by Snakemake, each as a notebook that papermill executes.

``python -m tadlib.grid GRID`` is the one command (:mod:`tadlib.grid.run`). A grid's file becomes cells
(:mod:`tadlib.grid.load`), the cells become jobs (:mod:`tadlib.grid.jobs`), Snakemake orders the jobs, and
:mod:`tadlib.grid.job` carries out one of them. Needs the extra ``grid``.
"""
