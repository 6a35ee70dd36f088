"""What an audit of a folder of images is worth: the rows of ``benchmarks/own_images.py`` and ``audited_folder.py`` as
tables and a figure."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from tadbook.pages import NONE_YET, captioned, provenance
from tadbook.style import CYCLE, figure, style
from tadbook.tables import over_seeds
from tadlib.store import load_table, write_atomic

ORDERS = {"tad-posterior": "trust of the posterior", "random": "random", "loss-filter": "loss"}
WORDS = {"reviewed": "without the reviewed errors"}
SHOWN = {"network": "network on all images (%)", "distilled": "distilled, 10 images per class (%)"}


def accuracy_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each set of labels: test accuracy (%) of a network trained on all its images, and of its distilled
    set, mean ± half of the 95 % interval over seeds; only what was measured."""
    shown = {part: word for part, word in SHOWN.items() if (rows["part"] == part).any()}
    return pd.DataFrame(
        {"labels": WORDS.get(str(labels), labels)}
        | {word: over_seeds(of[of["part"] == part]["accuracy"], 100, 1) for part, word in shown.items()}
        for labels, of in rows[rows["part"].isin(list(shown))].groupby("labels", sort=False)
    )


def review_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each number of images looked at where a network was trained on what is left, and each order."""
    trained, found = rows[rows["part"] == "curve"], []
    for looked, at in trained.groupby("looked"):
        for order, word in ORDERS.items():
            if len(of := at[at["labels"] == order]):
                row: dict[str, object] = {"images looked at": int(str(looked)), "order": word}
                row["wrong labels left"] = over_seeds(of["errors_left"], 1, 0)
                found.append(row | {"accuracy (%)": over_seeds(of["accuracy"], 100, 1)})
    return pd.DataFrame(found)


def audited_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each number of classes and share of wrong labels of ``benchmarks/audited_folder.py``; AUROC of trust,
    F1 of the flagged labels, and shares (%), mean ± half of the 95 % interval over seeds."""
    return pd.DataFrame(
        {
            "classes": int(str(classes)),
            "images": int(of["images"].iloc[0]),
            "wrong (%)": f"{100 * float(str(share)):.0f}",
            "estimated (%)": over_seeds(of["noise_rate"], 100, 1),
            "AUROC": over_seeds(of["auroc"], 1, 3),
            "F1 of the flagged": over_seeds(of["f1"], 1, 3),
            "wrong among the first 100 (%)": over_seeds(of["first_100"], 100, 0),
        }
        for (classes, share), of in rows.groupby(["classes", "share"])
    )


def review_figure(rows: pd.DataFrame) -> Figure:
    """Wrong labels left, means over seeds, against images looked at, a curve for each order of looking; beside it test
    accuracy on what is left, where that was measured, with that without the reviewed errors as a line."""
    trained = rows[rows["part"].isin(["network", "curve"])]
    made, axes = figure(2.4, 1, 1 + bool((rows["part"] == "curve").any()))
    ax, of = axes[0, 0], rows[rows["part"] == "review"]
    means = of.astype({"errors_left": float}).groupby(["labels", "looked"])["errors_left"].mean()
    ends = trained.groupby(["part", "labels", "looked"])["accuracy"].mean()
    for (order, word), (colour, line) in zip(ORDERS.items(), CYCLE):
        if order in means:
            ax.plot(means[order].index, means[order], color=colour, linestyle=line, label=word)
        if ("curve", order) in ends:
            points = ends["curve", order]
            if ("network", "vanilla", 0) in ends:  # nobody has looked yet
                points = pd.concat([ends["network", "vanilla"], points])
            axes[0, 1].plot(points.index, 100 * points, color=colour, linestyle=line, marker="o", markersize=3)
    ax.set(xlabel="images looked at", ylabel="wrong labels left", ylim=(0, None), xlim=(0, of["looked"].max()))
    made.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=len(ORDERS))
    if axes.size > 1:
        axes[0, 1].set(xlabel="images looked at", ylabel="test accuracy (%)")
        if ("network", "reviewed", 0) in ends:
            axes[0, 1].axhline(100 * ends["network", "reviewed", 0], color="0.5", linewidth=0.8)
    return made


def write_own_images(results_dir: Path | str, target_dir: Path | str) -> Path:
    """Write what a page includes: ``own_images.md``, what cleaning the Roman numerals is worth, with its figure, and
    ``audited_folder.md``; returns the first."""
    results, target = Path(results_dir), Path(target_dir)
    target.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[pd.DataFrame], str]] = {
        "own_images": _fragment,
        "audited_folder": _audited_fragment,
    }
    for name, fragment in parts.items():
        path = results / f"{name}.parquet"
        text = fragment(load_table(path)) if path.exists() else NONE_YET
        write_atomic(target / f"{path.stem}.md", f"{text}\n".encode())
    path = results / "own_images.parquet"
    if path.exists() and ((rows := load_table(path))["part"] == "review").any():
        style()
        review_figure(rows).savefig(target / "own_images.png", metadata={"Software": None})
    return target / "own_images.md"


def _fragment(rows: pd.DataFrame) -> str:
    parts = []
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
        right, beside = "", ""
        if (rows["part"] == "curve").any():
            right = (
                " Right: test accuracy of a network trained on what is left; the grey line: on all but the {} errors. "
                "Intervals, wider than most differences, are in {{numref}}`tab-own-review`."
            )
            right, beside = right.format(start), "Left: "
        parts.append(
            ":::{figure} generated/own_images.png\n:name: fig-own-errors\n"
            ":alt: Curves of the wrong labels left against images looked at. That of random order falls slowly and "
            "straight, the others faster at first.\n\n"
            f"{beside}Of the {start} wrong labels of the Roman numerals, those left after so many images were looked "
            f"at. Means over {review['seed'].nunique()} seeds.{right}\n:::"
        )
    again = "Made by `python benchmarks/own_images.py --root DATA`."
    return "\n\n".join([*parts, f"{provenance(rows.drop(columns='n_networks'))} {again}"])


def _audited_fragment(rows: pd.DataFrame) -> str:
    caption = (
        "A folder of JPEG files of Tiny ImageNet, some of them in the subfolder of another class, as `tad audit` "
        "judges it. Mean ± half of the 95 % interval over seeds; without an interval where there are fewer than three."
    )
    again = "Made by `python benchmarks/audited_folder.py --root DATA`."
    return f"{captioned(audited_table(rows), 'audited-folder', caption)}\n\n{provenance(rows)} {again}"
