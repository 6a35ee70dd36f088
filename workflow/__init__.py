"""Grids: many runs from one small file, each a notebook that papermill executes, in an order that Snakemake finds.

``python -m workflow GRID`` is the one command (:mod:`workflow.run`). A grid's file becomes runs (:mod:`workflow.load`),
the runs become jobs (:mod:`workflow.jobs`), Snakemake starts the jobs, and :mod:`workflow.job` carries out one of them.
It is used from a clone of the repository and needs the extra ``grid``.
"""
