"""What the book's pages show of committed distilled sets: the two pictures for newcomers, and interactive figures."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tadbook import calibration, methods
from tadbook.comparison import against_rate
from tadbook.explore import explore_images, explore_runs
from tadbook.style import INK, NAMES, arm_style, array, bare, figure, style
from tadbook.tables import read_results, summarise
from tadlib.data import Dataset, load_dataset
from tadlib.distilled import Distilled, load_distilled
from tadlib.store import write_atomic

ARM_WORDS = {
    "vanilla": "all noisy labels",
    "loss-filter": "labels of small loss",
    "tad": "labels refined by TAD",
    "tad-posterior": "labels refined by the posterior",
    "oracle": "the true labels",
}
MOST_GROUPS = 12  # of one interactive figure
ABOUT = ("dataset", "noise", "rate", "method", "ipc", "preset")
RATES = """\
:::{figure} generated/rates.png
:name: fig-rates
:alt: Line charts against the rate of wrong labels, a column a kind of noise: accuracy of every arm, and the gap closed.

Accuracy of every arm (above), and the gap that TAD and the trust posterior close (below), against the rate of wrong
labels; one kind of noise a column. Bars: 95 % intervals, over seeds where
there are several.
:::"""

Sets = dict[tuple, dict[str, Distilled]]


def read_distilled(results_dir: Path | str) -> Sets:
    """Committed distilled sets by setting (values of ``ABOUT``) and arm.

    The oracle's, which knows no noise (:func:`tadlib.pipeline.as_used`), stands in every setting that it belongs to.
    """
    found: Sets = {}
    for path in sorted((Path(results_dir) / "distilled").glob("*.safetensors")):
        held = load_distilled(path)
        found.setdefault(tuple(held.params[name] for name in ABOUT), {})[held.params["arm"]] = held
    noisy = {setting: arms for setting, arms in found.items() if setting[1] != "none"}
    for setting, arms in found.items():
        alike = [of for of in noisy if setting[1] == "none" and (of[0], *of[3:]) == (setting[0], *setting[3:])]
        for of in alike if "oracle" in arms else ():
            noisy[of].setdefault("oracle", arms["oracle"])
        if setting not in noisy and not (alike and set(arms) == {"oracle"}):
            noisy[setting] = arms
    return {setting: {arm: arms[arm] for arm in ARM_WORDS if arm in arms} for setting, arms in noisy.items()}


def few_for_many(data: Dataset, few: Distilled) -> Figure:
    """All training images as a carpet, and beside it the distilled set at the same size on paper."""
    made, axes = figure(3.3, 1, 2)
    order = array(data.y_train).argsort(kind="stable")
    many = array(data.pixels(data.x_train))[order]
    synthetic = array(few.pixels).clip(0, 1)
    for ax, images, columns in ((axes[0, 0], many, 36), (axes[0, 1], synthetic, few.params["ipc"])):
        ax.imshow(_carpet(images, columns), cmap="gray_r", vmin=0, vmax=1)
        bare(ax)
    axes[0, 0].set_title(f"{len(many):,} labelled images")
    axes[0, 1].set_title(f"{len(synthetic):,} distilled images")
    return made


def _carpet(images_NCHW: np.ndarray, columns: int) -> np.ndarray:
    """Grey images in rows, with a gap of a pixel."""
    n, _, h, w = images_NCHW.shape
    rows = -(-n // columns)
    sheet = np.zeros((rows * columns, h + 1, w + 1), dtype=images_NCHW.dtype)
    sheet[:n, :-1, :-1] = images_NCHW[:, 0]
    return sheet.reshape(rows, columns, h + 1, w + 1).transpose(0, 2, 1, 3).reshape(rows * (h + 1), columns * (w + 1))


def by_arm(sets: Mapping[str, Distilled], accuracy: Mapping[str, float]) -> Figure:
    """An image of every class from the set of each arm, a row an arm, and the accuracy that the set gives as a bar."""
    made, axes = figure(0.4 * len(sets) + 0.75, 1, 2, gridspec_kw={"width_ratios": [2.4, 1]})
    rows = []
    for held in sets.values():
        x = array(held.pixels).clip(0, 1)[:: held.params["ipc"]]
        gap = np.zeros((*x.shape[:3], 1), dtype=x.dtype)
        rows.append(np.concatenate([np.concatenate([x, gap], 3)[k] for k in range(len(x))], 2))
    h = rows[0].shape[1]
    sheet = np.concatenate([np.pad(row, ((0, 0), (1, 1), (0, 0))) for row in rows], 1)
    pictures, bars = axes[0]
    if len(sheet) == 1:
        pictures.imshow(sheet[0], cmap="gray_r", vmin=0, vmax=1, aspect="auto")
    else:
        pictures.imshow(sheet.transpose(1, 2, 0), aspect="auto")
    pictures.set_yticks([(i + 0.5) * (h + 2) for i in range(len(sets))], [ARM_WORDS[arm] for arm in sets])
    width = rows[0].shape[2] / len(next(iter(sets.values())).class_names)
    names = next(iter(sets.values())).class_names
    pictures.set_xticks([(k + 0.5) * width for k in range(len(names))], names)
    pictures.tick_params(length=0)
    pictures.spines[:].set_visible(False)
    pictures.set_title("distilled from …", loc="left")
    for row, arm in enumerate(sets):
        bars.barh(row, 100 * accuracy[arm], 0.6, color=arm_style(arm)[0])
        bars.text(100 * accuracy[arm] + 2, row, f"{100 * accuracy[arm]:.0f} %", va="center", color=INK)
    bars.set(xlim=(0, 125), yticks=(), xticks=(0, 50, 100), xlabel="test accuracy (%)", ylim=(-0.5, len(sets) - 0.5))
    bars.invert_yaxis()
    return made


def accuracies(results: pd.DataFrame, setting: tuple) -> dict[str, float]:
    """Mean accuracy of each arm in the setting of a distilled set."""
    of = dict(zip(ABOUT, setting))
    rows = summarise(results) if len(results) else results
    same = ["dataset", "noise", "method", "preset", "ipc"]
    rows = rows[(rows[same] == pd.Series(of)[same]).all(axis=1)]
    if float(of["rate"]):  # labels of people and of files have the rate that they have
        rows = rows[np.isclose(rows["rate_nominal"].astype(float), float(of["rate"]))]
    return dict(zip(rows["arm"], rows["accuracy"].astype(float))) if len(rows) else {}


def images_to_explore(sets: Sets, results: pd.DataFrame):
    """All committed distilled sets, by setting and arm, with the accuracy that each gives."""
    groups = {}
    digits_first = sorted(sets.items(), key=lambda item: item[0][0] != "digits")
    for setting, arms in digits_first[:MOST_GROUPS]:
        of, known = dict(zip(ABOUT, setting)), accuracies(results, setting)
        rate = f" {100 * float(of['rate']):.0f} %" if float(of["rate"]) else ""
        data, noise, method = (NAMES.get(of[key], of[key]) for key in ("dataset", "noise", "method"))
        name = f"{data}, {noise}{rate}, {method}, {of['preset']}"
        if len(arms) and of["ipc"] != 10:
            name += f", {of['ipc']} a class"
        names: tuple[str, ...] = ()
        blocks = {}
        for arm, held in arms.items():
            names = held.class_names
            note = f"gives {100 * known[arm]:.1f} % test accuracy" if arm in known else ""
            blocks[f"{arm}: {ARM_WORDS[arm]}"] = (held.pixels, note)
        groups[name] = (names, blocks)
    return explore_images(groups)


def write_book_pictures(results_dir: Path | str, target_dir: Path | str) -> list[Path]:
    """Write what pages show of ``results_dir``, to be included: pictures, interactive figures, and their captions.

    ``few_for_many.md``, ``by_arm.md`` and ``rates.md`` with pictures of the same names, ``images.md``,
    ``runs.md``, and the figures of :mod:`tadbook.calibration` and :mod:`tadbook.methods`.
    Where results are missing a fragment is empty. Returns what was written.
    """
    target, results, sets = Path(target_dir), read_results(results_dir), read_distilled(results_dir)
    target.mkdir(parents=True, exist_ok=True)
    texts = {"few_for_many.md": "", "by_arm.md": "", "images.md": "", "runs.md": "", "rates.md": ""}
    digits = next(
        (setting for setting, arms in sets.items() if setting[0] == "digits" and {"vanilla", "oracle"} <= {*arms}), None
    )
    if digits is not None and (known := accuracies(results, digits)):
        style()
        shown = {arm: held for arm, held in sets[digits].items() if arm in known and arm != "loss-filter"}
        data = load_dataset("digits")
        few_for_many(data, shown["oracle"]).savefig(target / "few_for_many.png", metadata={"Software": None})
        by_arm(shown, known).savefig(target / "by_arm.png", metadata={"Software": None})
        texts["few_for_many.md"] = _few_for_many(data, shown["oracle"], known["oracle"])
        texts["by_arm.md"] = _by_arm(dict(zip(ABOUT, digits)), results)
    if sets:
        write_atomic(target / "images.html", images_to_explore(sets, results).html().encode())
        texts["images.md"] = (
            "```{explorer} generated/images.html\n:name: fig-images\n\nThe committed distilled sets of seed 0: choose "
            "data and noise, and a class. Accuracies are means over the seeds of the results.\n```"
        )
    if len(results):
        write_atomic(target / "runs.html", explore_runs(results).html().encode())
        texts["runs.md"] = (
            "```{explorer} generated/runs.html\n:name: fig-runs\n\nEvery committed run: test accuracy (a line: 95 % "
            "interval over its networks) against what it cost, or against its size.\n```"
        )
    style()
    if rates := against_rate(results):
        rates.savefig(target / "rates.png", metadata={"Software": None})
        texts["rates.md"] = RATES
    for name, (drawn, text) in (calibration.fragments(results_dir) | methods.fragments(results_dir)).items():
        texts[f"{name}.md"] = text
        if drawn is not None:
            drawn.savefig(target / f"{name}.png", metadata={"Software": None})
    for name, text in texts.items():
        write_atomic(target / name, f"{text}\n".encode())
    return [target / name for name in texts]


def _few_for_many(data: Dataset, few: Distilled, accuracy: float) -> str:
    return f"""\
:::{{figure}} generated/few_for_many.png
:name: fig-few-for-many
:alt: Left, a carpet of all training images, too small to tell apart. Right, ten distilled digits a class, legible.

Distillation on scikit-learn's digits. A network that sees nothing but the {len(few.pixels)} images on the right names
{100 * accuracy:.0f} % of unseen digits correctly; they stand in for the {len(data.x_train):,} on the left. Here all
labels were right.
:::"""


def _by_arm(of: Mapping, results: pd.DataFrame) -> str:
    seeds = results[(results["dataset"] == "digits") & (results["preset"] == of["preset"])]["seed"].nunique()
    return f"""\
:::{{figure}} generated/by_arm.png
:name: fig-wrong-labels
:alt: A row of ten distilled digits for each way to treat labels, with a bar of the accuracy, shortest for noisy labels.

Digits distilled again, where {100 * float(of["rate"]):.0f} % of the labels are wrong ({of["noise"]}: each
wrong label is the next digit). The first row uses every noisy label, the last the true ones; between them a trust
method decides which labels to use. Means over {seeds} seeds.
:::"""
