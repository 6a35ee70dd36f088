"""Grids: many cells from one small file, run by Snakemake, each as a notebook that papermill executes.

``python -m workflow GRID`` is the one command (:mod:`workflow.run`). A grid's file becomes cells
(:mod:`workflow.load`), the cells become jobs (:mod:`workflow.jobs`), Snakemake orders the jobs, and
:mod:`workflow.job` carries out one of them. Needs the extra ``grid``.
"""
