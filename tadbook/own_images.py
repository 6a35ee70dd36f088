"""What cleaning a real folder of images is worth: the rows of ``benchmarks/own_images.py`` as tables and a figure."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from tadbook.pages import NONE_YET, captioned, provenance
from tadbook.style import CYCLE, figure, style
from tadbook.tables import over_seeds
from tadlib.store import load_table, write_atomic

ORDERS = {"tad-posterior": "trust of the posterior", "random": "random", "loss-filter": "loss"}
WORDS = {"reviewed": "without the reviewed errors"}
ALL = "network on all images (%)"


def accuracy_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each set of labels: test accuracy (%) of a network trained on all its images, and of its distilled
    set, mean ± half of the 95 % interval over seeds."""
    shown = {"network": ALL, "distilled": "distilled, 10 images per class (%)"}
    own = rows[rows["part"].isin(list(shown))]
    return pd.DataFrame(
        {"labels": WORDS.get(str(labels), labels)}
        | {word: over_seeds(of[of["part"] == part]["accuracy"], 100, 1) for part, word in shown.items()}
        for labels, of in own.groupby("labels", sort=False)
    )


def review_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each number of images looked at where a network was trained on what is left, for each order."""
    trained = rows[rows["part"] == "curve"]
    found = []
    for looked, of in trained.groupby("looked"):
        row: dict[str, object] = {"images looked at": int(str(looked))}
        for order, word in ORDERS.items():
            mine = of[of["labels"] == order]
            row[f"errors left: {word}"] = over_seeds(mine["errors_left"], 1, 0)
            row[f"accuracy (%): {word}"] = over_seeds(mine["accuracy"], 100, 1)
        found.append(row)
    return pd.DataFrame(found)


def review_figure(rows: pd.DataFrame) -> Figure:
    """Wrong labels left, means over seeds, against images looked at; a curve for each order of looking."""
    made, axes = figure(2.4)
    ax, of = axes[0, 0], rows[rows["part"] == "review"]
    for (order, word), (colour, line) in zip(ORDERS.items(), CYCLE):
        mean = of[of["labels"] == order].astype({"errors_left": float}).groupby("looked")["errors_left"].mean()
        if len(mean):
            ax.plot(mean.index, mean, color=colour, linestyle=line, label=word)
    ax.set(xlabel="images looked at", ylabel="wrong labels left", ylim=(0, None), xlim=(0, of["looked"].max()))
    ax.legend(loc="lower left")
    return made


def write_own_images(results_dir: Path | str, target_dir: Path | str) -> Path:
    """Write ``own_images.md``, what cleaning the Roman numerals is worth, with its figure, to be included by a page."""
    path, target = Path(results_dir) / "own_images.parquet", Path(target_dir)
    target.mkdir(parents=True, exist_ok=True)
    text = NONE_YET
    if path.exists():
        text = _fragment(rows := load_table(path))
        if (rows["part"] == "review").any():
            style()
            review_figure(rows).savefig(target / "own_images.png", metadata={"Software": None})
    write_atomic(target / "own_images.md", f"{text}\n".encode())
    return target / "own_images.md"


def _fragment(rows: pd.DataFrame) -> str:
    parts, seeds = [], rows["seed"].nunique()
    tables = {
        "own-accuracy": (
            accuracy_table(rows),
            "Roman numerals: test accuracy after training on each set of labels. Mean ± half of the 95 % interval over "
            "seeds; without an interval where there are fewer than three seeds.",
        ),
        "own-review": (
            review_table(rows),
            "Roman numerals: a person looks at the first images of each order and takes wrong labels out. Wrong labels "
            "that are left, and test accuracy of a network trained on all that is left.",
        ),
    }
    for name, (table, caption) in tables.items():
        if len(table):
            parts.append(captioned(table, name, caption))
    if (review := rows[rows["part"] == "review"]).size:
        start = int(review["errors_left"].astype(float).max())
        parts.append(
            ":::{figure} generated/own_images.png\n:name: fig-own-errors\n"
            ":alt: Curves of the wrong labels left against images looked at. That of random order falls slowly and "
            "straight, the others faster at first.\n\n"
            f"Of the {start} wrong labels of the Roman numerals, those left after so many images were looked at. Means "
            f"over {seeds} seeds.\n:::"
        )
    again = "Made by `python benchmarks/own_images.py --root DATA`."
    return "\n\n".join([*parts, f"{provenance(rows.drop(columns='n_networks'))} {again}"])
