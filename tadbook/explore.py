"""Interactive figures: HTML that stands on its own, needs no network, and works with a keyboard.

Legend: N samples, K classes, C H W image.

Each function gathers data for one kind of figure of ``explore.js``; the :class:`Explorer` it returns shows itself where
a notebook's cell returns it, and :meth:`Explorer.html` is the same as text.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from tadbook.style import NAMES, arm_style
from tadlib.config import ARMS
from tadlib.errors import require
from tadlib.noise import inject
from tadlib.pipeline import TIMED
from tadlib.trust import SPACES, RefinedSet

FOLDER = Path(__file__).parent
COLUMNS = 40  # of the one picture that holds all images
MOST_A_CLASS = 10


@dataclass(frozen=True)
class Explorer:
    """A figure of kind ``kind`` (a name in ``explore.js``) with its ``data``; ``about`` says what it offers."""

    kind: str
    data: Mapping[str, Any]
    about: str

    def html(self) -> str:
        """A ``div`` with its style, data and script."""
        data = json.dumps(self.data, separators=(",", ":"), allow_nan=False).replace("</", r"<\/")
        name = "explore-" + hashlib.sha256(f"{self.kind}{data}".encode()).hexdigest()[:10]
        style, script = ((FOLDER / f"explore.{suffix}").read_text(encoding="utf-8") for suffix in ("css", "js"))
        about = html.escape(self.about)
        return (
            f'<div class="tad-explore" id="{name}" role="group" aria-label="{about}">\n'
            f"<style>{style}</style>\n<noscript><p>{about} It needs JavaScript.</p></noscript>\n"
            f"<script>(() => {{\n{script}\n"
            f'explore(document.getElementById("{name}"), "{self.kind}", {data});\n}})();</script>\n</div>'
        )

    def _repr_html_(self) -> str:
        return self.html()

    def __repr__(self) -> str:
        return f"Explorer({self.kind!r}): {self.about}"


def sprite(pixels_NCHW: Tensor) -> dict[str, Any]:
    """All images in [0, 1], in rows of one PNG: its address (``source``), ``columns`` and ``rows``. Ink is dark."""
    n, c, h, w = pixels_NCHW.shape
    require(n > 0 and c in (1, 3), f"expected images with 1 or 3 channels, got {tuple(pixels_NCHW.shape)}")
    bytes_NCHW = (pixels_NCHW.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    if c == 1:
        bytes_NCHW = 255 - bytes_NCHW
    columns = min(COLUMNS, n)
    rows = -(-n // columns)
    sheet = torch.full((rows * columns, c, h, w), 255, dtype=torch.uint8)
    sheet[:n] = bytes_NCHW
    picture = sheet.view(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w)
    from torchvision.io import encode_png  # here: torchvision takes seconds to import

    source = base64.b64encode(encode_png(picture.contiguous()).numpy().tobytes()).decode()
    return {"source": f"data:image/png;base64,{source}", "columns": columns, "rows": rows}


def explore_noise(class_names: Sequence[str], *, rate: float = 0.4, dataset: str | None = None) -> Explorer:
    """The transition matrix of each noise model that needs neither images nor files, at any rate."""
    K = len(class_names)
    labels_N = torch.arange(K).repeat(2)
    kinds = ["symmetric", "pairflip"] + (["asymmetric"] if dataset else [])
    targets = {}
    for kind in kinds:
        T = inject(labels_N, kind, 0.5, n_classes=K, seed=0, dataset=dataset).transition_nominal
        assert T is not None
        targets[kind] = (2 * T - torch.eye(K, dtype=T.dtype)).round(decimals=4).tolist()
    about = "The transition matrix of a noise model, with its kind and rate to choose."
    return Explorer("noise", {"targets": targets, "names": list(class_names), "rate": rate}, about)


def explore_samples(
    pixels_NCHW: Tensor, refined: RefinedSet, true_N: Tensor, class_names: Sequence[str], *, most: int = 2000
) -> Explorer:
    """Training images with their noisy, refined and true label, by space, class and trust; at most ``most``, evenly."""
    n = len(pixels_NCHW)
    chosen = torch.arange(n)[:: -(-n // most)]

    def part(values_N: Tensor) -> list:
        return values_N.detach().cpu()[chosen].tolist()

    data = {
        "sprites": [sprite(pixels_NCHW[chosen.to(pixels_NCHW.device)])],
        "names": list(class_names),
        "spaces": list(SPACES),
        "noisy": part(refined.noisy),
        "true": part(true_N),
        "label": part(refined.label),
        "space": part(refined.space),
        "trust": [round(value, 3) for value in part(refined.trust)],
    }
    return Explorer("samples", data, f"{len(chosen)} training images by space, noisy label and trust.")


def explore_posterior(
    pixels_NCHW: Tensor,
    log_p_NK: Tensor,
    noisy_N: Tensor,
    true_N: Tensor,
    transitions: Mapping[str, Tensor],
    a: float,
    class_names: Sequence[str],
) -> Explorer:
    """q(y) ∝ p(y | x) T[y, ỹ]^a of single samples (at most a few dozen), with a and T (K, K) to choose."""
    data = {
        "sprites": [sprite(pixels_NCHW)],
        "names": list(class_names),
        "log_p": log_p_NK.detach().cpu().double().round(decimals=3).tolist(),
        "noisy": noisy_N.tolist(),
        "true": true_N.tolist(),
        "transitions": {name: T.detach().cpu().double().round(decimals=4).tolist() for name, T in transitions.items()},
        "a": a,
    }
    return Explorer("posterior", data, f"The posterior of {len(noisy_N)} samples, with a and T to choose.")


def explore_images(groups: Mapping[str, tuple[Sequence[str], Mapping[str, tuple[Tensor, str]]]]) -> Explorer:
    """Sets of distilled images beside each other.

    ``groups``: for each name of a group its class names, and for each set's title its images (S, C, H, W), ordered by
    class, with a note (a text, may be empty). Of each class at most ``MOST_A_CLASS`` images are kept.
    """
    sprites: list[dict] = []
    shown: dict[str, dict] = {}
    for group, (names, sets) in groups.items():
        blocks = []
        for title, (pixels_SCHW, note) in sets.items():
            kept = pixels_SCHW.view(len(names), -1, *pixels_SCHW.shape[1:])[:, :MOST_A_CLASS]
            blocks.append({"title": title, "note": note, "sprite": len(sprites), "ipc": kept.shape[1]})
            sprites.append(sprite(kept.flatten(0, 1)))
        shown[group] = {"names": list(names), "blocks": blocks}
    return Explorer("images", {"sprites": sprites, "groups": shown}, "Distilled images by class, set beside set.")


def explore_runs(results: pd.DataFrame) -> Explorer:
    """Every run of ``results`` (columns of ``results.parquet``) as a point: accuracy along cost, noise or size."""
    seconds = results.reindex(columns=[f"seconds_{stage}" for stage in TIMED]).astype(float).fillna(0)
    rows = []
    for run, spent in zip(results.to_dict("records"), seconds.to_dict("records"), strict=True):
        noise = str(run["noise"])
        rate = f" {100 * float(run['rate_nominal']):.0f} %" if run["rate_nominal"] and noise not in NAMES else ""
        labels = "clean labels" if noise == "none" else f"{NAMES.get(noise, noise)}{rate}"
        rows.append(
            {
                "group": f"{NAMES.get(run['dataset'], run['dataset'])}, {labels}, {run['preset']}",
                "arm": run["arm"],
                "method": NAMES.get(run["method"], run["method"]),
                "ipc": int(run["ipc"]),
                "seed": int(run["seed"]),
                "accuracy": round(float(run["accuracy_mean"]), 4),
                "half": None if pd.isna(run["accuracy_ci95"]) else round(float(run["accuracy_ci95"]), 4),
                "seconds": round(sum(spent.values()), 1),
                "trusting": round(spent["seconds_divert"], 1),
            }
        )
    styles = {arm: {"colour": arm_style(arm)[0], "shape": i} for i, arm in enumerate(ARMS)}
    axes = {"seconds": "seconds, all stages", "trusting": "seconds, trust method alone", "ipc": "images a class"}
    about = "Test accuracy of every committed run against what it cost."
    return Explorer("runs", {"rows": rows, "axes": axes, "styles": styles}, about)
