"""Figures and tables of the book: pure functions from tensors and tables to figures, tables and Markdown.

It imports tadlib, never the other way round, and it alone imports matplotlib and seaborn.
"""

from tadbook.chapter import configure
from tadbook.comparison import against_rate, shortfalls, verdict
from tadbook.costs import chapter_note
from tadbook.explore import (
    explore_images,
    explore_noise,
    explore_posterior,
    explore_runs,
    explore_samples,
)
from tadbook.labels import (
    anchor_picture,
    calibration_curve,
    discriminants,
    image_grid,
    label_bars,
    loss_histograms,
    mixtures,
    mixtures_over_epochs,
    review_curve,
    roc_curves,
    score_histograms,
    space_flow,
    space_moves,
    transition_maps,
    trust_over_rounds,
    weighed_labels,
)
from tadbook.networks import (
    accuracy_bars,
    gradient_agreement,
    matching_loss,
    synthetic_images,
    trajectories,
)
from tadbook.own_images import write_own_images
from tadbook.pages import folded, readable, write_book_tables, write_published, write_readme_table
from tadbook.pictures import write_book_pictures
from tadbook.speed import write_speed
from tadbook.style import style
from tadbook.tables import (
    comparisons,
    labels_table,
    methods_table,
    read_results,
    read_trust,
    results_table,
    spaces_table,
    stage_table,
    summarise,
    trust_table,
)

__all__ = [
    "accuracy_bars",
    "against_rate",
    "anchor_picture",
    "calibration_curve",
    "chapter_note",
    "comparisons",
    "configure",
    "discriminants",
    "explore_images",
    "explore_noise",
    "explore_posterior",
    "explore_runs",
    "explore_samples",
    "folded",
    "gradient_agreement",
    "image_grid",
    "label_bars",
    "labels_table",
    "loss_histograms",
    "matching_loss",
    "methods_table",
    "mixtures",
    "mixtures_over_epochs",
    "read_results",
    "read_trust",
    "readable",
    "results_table",
    "review_curve",
    "roc_curves",
    "score_histograms",
    "shortfalls",
    "space_flow",
    "space_moves",
    "spaces_table",
    "stage_table",
    "style",
    "summarise",
    "synthetic_images",
    "trajectories",
    "transition_maps",
    "trust_over_rounds",
    "trust_table",
    "verdict",
    "weighed_labels",
    "write_book_pictures",
    "write_book_tables",
    "write_own_images",
    "write_published",
    "write_readme_table",
    "write_speed",
]
