"""An audit of labels: which of them are probably wrong, as a report to read and as lists to work through.

Legend: N samples, K classes, C H W image, D features, M suspects.

:func:`audit` carries out the stages ``noise`` and ``divert`` and writes into the output folder

- ``report.html``, one file without scripts that needs no network;
- ``suspects.csv``, every image, least trusted first, with an empty column ``checked`` for a person to fill;
- ``labelstudio.json`` and ``labelstudio.xml``, suspects as tasks with predictions, and the labelling interface.

How the labels were judged does not matter here: everything is read off :class:`Findings`.
"""

import base64
import html
import io
import json
import os
import shlex
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torchvision.io import encode_png

from tadlib import __version__, pipeline, store
from tadlib.config import Config
from tadlib.data import Dataset, is_own, own
from tadlib.errors import require
from tadlib.materials import plain_dataset
from tadlib.nn.images import averaged
from tadlib.noise.corrections import CHECKED, read_corrections
from tadlib.rng import generator
from tadlib.trust import RefinedSet, predictors

SHOWN = 200  # most suspects in the gallery; the lists hold all
LEAST = 24  # least trusted images that are shown where fewer are flagged
GROUPS = 40  # most groups of duplicates in the report
IN_GROUP = 6  # most images of a group
FULL_SHADE = 0.1  # at least, of the errors of a class: the darkest cells of the matrix
MATRIX = 20  # most classes of which the whole matrix is shown
PAIRS = 10  # most pairs of classes in the list of confusions
THUMBNAIL = 160  # pixels, of images read from files
FILTERS = 64  # of the features in which trusted examples are the nearest
RESOLUTION = 32  # pixels, of images that are larger
SIDE = 16  # pixels to which images are averaged before they are compared for near duplicates
ALIKE = 0.98  # least correlation of the pixels of near duplicates (our choice)
CHUNK = 1000  # images compared with all others at a time


# What was found ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Findings:
    """What a trust method says about labels, on the CPU."""

    class_names: tuple[str, ...]
    places: tuple[str, ...]
    """Of each image (N): its path, or its place in the full training set."""
    noisy: Tensor
    """(N,) int64"""
    trust: Tensor
    """(N,) float64, probability that the noisy label is right."""
    flagged: Tensor
    """(N,) bool, labels judged wrong."""
    q: Tensor
    """(N, K) float64, probability of each class being the true one."""
    noise_rate: tuple[float, float, float]
    """Fraction of labels that are wrong: estimate and interval."""
    checked: Tensor
    """(N,) bool, labels that a person checked; never flagged."""

    @staticmethod
    def of(refined: RefinedSet, data: Dataset, checked_N: Tensor | None) -> "Findings":
        """Read off a refined set of arm ``tad-posterior``."""
        checked_N = torch.zeros(len(refined.noisy), dtype=torch.bool) if checked_N is None else checked_N
        assert refined.posterior is not None
        assert refined.flagged is not None
        assert refined.noise_rate is not None
        return Findings(
            class_names=data.class_names,
            places=places_of(data),
            noisy=refined.noisy,
            trust=refined.trust.double(),
            flagged=refined.flagged & ~checked_N,
            q=refined.posterior.double(),
            noise_rate=tuple(refined.noise_rate.tolist()),  # type: ignore[arg-type]
            checked=checked_N,
        )

    @cached_property
    def suggested(self) -> Tensor:
        """(N,) the most probable class; of a flagged label the most probable other one."""
        own_NK = torch.zeros_like(self.q, dtype=torch.bool).scatter(1, self.noisy[:, None], self.flagged[:, None])
        return self.q.masked_fill(own_NK, -1).argmax(1)

    @cached_property
    def probability(self) -> Tensor:
        """(N,) of the suggested class."""
        return self.q.gather(1, self.suggested[:, None])[:, 0]

    @cached_property
    def expected(self) -> Tensor:
        """(K, K) expected number of images of each true class (row) that carry each label.

        Where the posterior counts the transition matrix for less than one, as on people's errors, these numbers agree
        with the probabilities of the images and the matrix does not.
        """
        of_label_KK = self.q.new_zeros(len(self.class_names), len(self.class_names))
        return of_label_KK.index_add(0, self.noisy, self.q).T

    @cached_property
    def order(self) -> Tensor:
        """(N,) images, the least trusted first, checked ones last."""
        return (self.trust + self.checked.double()).argsort(stable=True)

    @cached_property
    def suspects(self) -> Tensor:
        """(M,) flagged images, the least trusted first; where they are few, the :data:`LEAST` least trusted ones."""
        flagged, unchecked = (self.order[mask_N[self.order]] for mask_N in (self.flagged, ~self.checked))
        return flagged if len(flagged) >= LEAST else unchecked[:LEAST]

    @property
    def precision(self) -> float | None:
        """Expected fraction of flagged labels that are wrong; None where none is flagged."""
        return (1 - self.trust)[self.flagged].mean().item() if self.flagged.any() else None

    @property
    def recall(self) -> float | None:
        """Expected fraction of wrong labels that are flagged; None where none is wrong."""
        wrong = self.noise_rate[0] * len(self.trust)
        return min((1 - self.trust)[self.flagged].sum().item() / wrong, 1.0) if wrong > 0 else None


# Images that are alike -----------------------------------------------------------------------------------------------


def identical(x_NCHW: Tensor, label_N: Tensor) -> list[list[int]]:
    """Groups of images with the same pixels and not all with the same label."""
    groups: dict[int, list[int]] = defaultdict(list)
    for i, first in enumerate(predictors.first_copies(x_NCHW).tolist()):
        groups[first].append(i)
    return [group for group in groups.values() if len(label_N[group].unique()) > 1]


def nearly_identical(x_NCHW: Tensor, label_N: Tensor) -> list[list[int]]:
    """Pairs of images with different labels whose pixels correlate by more than :data:`ALIKE`, the most alike first.

    An image stands beside the one with another label that is most like it; images of one brightness are left out.
    """
    height, width = (min(SIDE, side) for side in x_NCHW.shape[2:])
    z_ND = averaged(x_NCHW, (height, width)).flatten(1)
    z_ND = normalize(z_ND - z_ND.mean(1, keepdim=True))
    found: dict[tuple[int, int], float] = {}
    for chunk in torch.arange(len(z_ND)).split(CHUNK):
        alike_BN = (z_ND[chunk] @ z_ND.T).masked_fill(label_N[chunk, None] == label_N, -1)
        for i, (value, j) in zip(chunk.tolist(), zip(*(t.tolist() for t in alike_BN.max(1)))):
            if value > ALIKE:
                found[min(i, j), max(i, j)] = value
    return [list(pair) for pair in sorted(found, key=lambda pair: -found[pair])]


def duplicates(x_NCHW: Tensor, label_N: Tensor) -> tuple[list[list[int]], list[list[int]]]:
    """:func:`identical` groups, and :func:`nearly_identical` pairs that are not in one of these."""
    same = identical(x_NCHW, label_N)
    group = {i: number for number, images in enumerate(same) for i in images}
    pairs = nearly_identical(x_NCHW, label_N)
    return same, [[i, j] for i, j in pairs if i not in group or group[i] != group.get(j)]


def nearest_trusted(x_NCHW: Tensor, findings: Findings, seed: int) -> list[dict[int, int]]:
    """For each suspect that is shown: its noisy and its suggested class, and the nearest trusted image of each.

    Nearest by cosine in the responses of patches, each of unit variance. An image is trusted that is not flagged, and
    no less so than half of those of its class.
    """
    height, width = (min(predictors.LARGEST, side) for side in x_NCHW.shape[2:])
    x_NCHW = averaged(x_NCHW, (height, width))
    made = predictors.filters(x_NCHW, FILTERS, generator(seed, "audit"))
    z_ND = predictors.responses(made, x_NCHW, mirror=False)
    z_ND = normalize((z_ND - z_ND.mean(0)) / z_ND.std(0).clamp_min(1e-6))
    f, shown = findings, findings.suspects[:SHOWN]
    nearest: list[dict[int, int]] = [{} for _ in shown]
    for k in range(len(f.class_names)):
        mine_N = (f.noisy == k) & ~f.flagged
        if not mine_N.any():
            continue
        mine_N &= f.trust >= f.trust[mine_N].median()
        pool = mine_N.nonzero()[:, 0]
        asked = ((f.noisy[shown] == k) | (f.suggested[shown] == k)).nonzero()[:, 0]
        alike = z_ND[shown[asked]] @ z_ND[pool].T
        alike[shown[asked, None] == pool] = -2  # a suspect that is not flagged is no example for itself
        for m, best in zip(asked.tolist(), alike.argmax(1).tolist()):
            nearest[m][k] = int(pool[best])
    return nearest


# Lists ---------------------------------------------------------------------------------------------------------------


def contradictions(findings: Findings, same: Sequence[Sequence[int]], alike: Sequence[Sequence[int]]) -> list[str]:
    """For each image (N), in words, images like it with other labels; empty for most."""
    f = findings
    texts: list[list[str]] = [[] for _ in f.places]
    for groups, words in ((same, "same pixels as"), (alike, "nearly the same as")):
        for group in groups:
            labels = f.noisy[torch.tensor(group)].tolist()
            other = next(j for j, label in zip(group, labels) if label != labels[0])
            for i, label in zip(group, labels):
                j = group[0] if label != labels[0] else other
                texts[i].append(f"{words} {f.places[j]}, which is labelled {f.class_names[f.noisy[j]]}")
    return ["; ".join(of_image) for of_image in texts]


def reasons(findings: Findings, contradicted: Sequence[str]) -> list[str]:
    """Why to look at each image (N), in words; empty for most."""
    f = findings
    suggested = [f"probably {f.class_names[k]}" if bad else "" for k, bad in zip(f.suggested, f.flagged.tolist())]
    checked = ["checked by a person" if done else "" for done in f.checked.tolist()]
    return ["; ".join(filter(None, texts)) for texts in zip(suggested, contradicted, checked)]


def table(findings: Findings, by: str, why: Sequence[str]) -> pd.DataFrame:
    """A row for every image, least trusted first; ``by``, path or index, names the column of places."""
    f = findings
    name = f.class_names.__getitem__
    columns = {
        by: f.places,
        "label": map(name, f.noisy.tolist()),
        "trust": f.trust.numpy().round(4),
        "flagged": f.flagged.numpy(),
        "suggested": map(name, f.suggested.tolist()),
        "probability": f.probability.numpy().round(4),
        "why": why,
        CHECKED: [name(k) if done else "" for k, done in zip(f.noisy.tolist(), f.checked.tolist())],
    }
    return pd.DataFrame({name: list(values) for name, values in columns.items()}).iloc[f.order.numpy()]


def tasks(findings: Findings, by: str, images: Sequence[str], why: Sequence[str]) -> list[dict[str, Any]]:
    """Suspects as Label Studio's tasks with predictions (its guide, *Import pre-annotated data*), worst first.

    ``images`` (M) are addresses. The control is called like the column of
    :func:`~tadlib.noise.corrections.corrected`, so that Label Studio's export as CSV is a file of corrections.
    """
    f = findings
    made = []
    for i, image in zip(f.suspects.tolist(), images, strict=True):
        label, trust = f.class_names[f.noisy[i]], round(float(f.trust[i]), 4)
        data = {"image": image, by: f.places[i], "label": label, "trust": trust, "why": why[i]}
        value = {"choices": [f.class_names[f.suggested[i]]]}
        about = {"id": f"suspect-{i}", "from_name": CHECKED, "to_name": "image", "type": "choices"}
        prediction = {"model_version": f"tadlib-{__version__}", "score": round(float(f.probability[i]), 4)}
        made.append({"data": data, "predictions": [prediction | {"result": [about | {"value": value}]}]})
    return made


def interface(class_names: Sequence[str]) -> str:
    """Label Studio's labelling interface for :func:`tasks`, XML."""
    choices = "\n".join(f'    <Choice value="{html.escape(name)}"/>' for name in class_names)
    return f"""<View>
  <Image name="image" value="$image"/>
  <Header value="Label: $label. $why"/>
  <Choices name="{CHECKED}" toName="image" choice="single" required="true">
{choices}
  </Choices>
</View>
"""


# The report ----------------------------------------------------------------------------------------------------------


def pictures(data: Dataset) -> Callable[[int], str]:
    """Image i of a data set as a data URI: from its file where it has one, else from the tensors."""

    @cache  # trusted examples come again and again
    def picture(i: int) -> str:
        if data.files is not None:
            image, content = data.files.open(data.files.paths[i]), io.BytesIO()
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            image.save(content, "JPEG", quality=85)
            return _data_uri("jpeg", content.getvalue())
        pixels_CHW = (data.pixels(data.x_train[i : i + 1].cpu())[0] * 255).round().to(torch.uint8)
        return _data_uri("png", encode_png(pixels_CHW).numpy().tobytes())

    return picture


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def percent(fraction: float | None) -> str:
    """A fraction in whole per cent, near 0 and 1 to a tenth; a dash for None."""
    if fraction is None:
        return "–"
    value = 100 * fraction
    if 0 < value < 0.05 or 99.95 <= value < 100:
        text = "< 0.1 %" if value < 1 else "> 99.9 %"
    else:
        text = f"{value:.0f} %" if 10 <= value <= 99 or value in (0, 100) else f"{value:.1f} %"
    return text.replace(" ", "\xa0")  # no line breaks within


def shares(findings: Findings) -> Tensor:
    """(K, K) expected share of the images of each true class (row) that carry each label."""
    return findings.expected / findings.expected.sum(1, keepdim=True).clamp_min(1e-12)


def confusions(findings: Findings) -> list[dict[str, Any]]:
    """Pairs of true class and noisy label by the expected number of such labels, the largest first."""
    names, share_KK = findings.class_names, shares(findings)
    errors_KK = findings.expected.clone().fill_diagonal_(0)
    pairs = []
    for place in errors_KK.flatten().argsort(descending=True, stable=True)[:PAIRS].tolist():
        true, noisy = divmod(place, len(names))
        if errors_KK[true, noisy] >= 0.5:
            pair = {"true": names[true], "noisy": names[noisy]}
            pairs.append(pair | {"expected": errors_KK[true, noisy].item(), "share": share_KK[true, noisy].item()})
    return pairs


def per_class(findings: Findings) -> list[dict[str, Any]]:
    """Figures of each noisy label."""
    f = findings
    rows = []
    for k, name in enumerate(f.class_names):
        mine = f.noisy == k
        count, wrong_K = int(mine.sum()), f.q[mine].sum(0)
        wrong_K[k] = 0
        expected = (1 - f.trust)[mine].sum().item()
        row = {"name": name, "count": count, "flagged": int(f.flagged[mine].sum()), "wrong": expected}
        row |= {"share": expected / max(count, 1), "true": f.q[:, k].sum().item()}
        rows.append(row | {"other": f.class_names[int(wrong_K.argmax())] if wrong_K.max() >= 0.5 else None})
    return rows


def changes(before: Findings, after: Findings) -> dict[str, Any]:
    """What checked labels changed: ``before`` and ``after`` are of the same images."""
    checked, changed = after.checked, before.noisy != after.noisy
    asked = checked & before.flagged
    open_N = ~checked
    return {
        "checked": int(checked.sum()),
        "changed": int(changed.sum()),
        "were_flagged": int(asked.sum()),
        "flagged_and_changed": int((asked & changed).sum()),
        "observed": (asked & changed).sum().item() / asked.sum().item() if asked.any() else None,
        "expected": (1 - before.trust)[asked].mean().item() if asked.any() else None,
        "flagged_before": int(before.flagged.sum()),
        "flagged_after": int(after.flagged.sum()),
        "newly_flagged": int((after.flagged & ~before.flagged & open_N).sum()),
        "no_longer_flagged": int((before.flagged & ~after.flagged & open_N).sum()),
        "rate_before": before.noise_rate[0],
        "rate_after": after.noise_rate[0],
    }


def render(findings: Findings, **about: Any) -> str:
    """The report as HTML; the template escapes every text."""
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    environment = jinja2.Environment(autoescape=True, **options)
    environment.filters["percent"] = percent
    template = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    share_KK = shares(findings)
    errors_KK = share_KK.clone().fill_diagonal_(0)
    shade_KK = errors_KK / max(errors_KK.max().item(), FULL_SHADE)
    config = about["config"]
    return template.render(
        f=findings,
        n=len(findings.places),
        name=Path(config.dataset.partition(":")[2]).name or config.dataset,
        flagged_above=1 / (1 + config.posterior.cost),
        matrix=share_KK.tolist() if len(findings.class_names) <= MATRIX else None,
        shades=shade_KK.tolist(),
        confusions=confusions(findings),
        classes=per_class(findings),
        version=__version__,
        **about,
    )


def whole(
    config: Config, n_train: int | None = None, n_test: int | None = None, resolution: int | None = None
) -> Config:
    """``config`` with all training images, none of them held out for tests, at up to :data:`RESOLUTION` pixels, but for
    what is not None: a preset takes a part, and smaller ones."""
    if is_own(config.dataset):
        found = own.listing(config.dataset)
        n_test = n_test if n_test is not None or found.has_test else 0
        resolution = min(RESOLUTION, own.look(found).side) if resolution is None else resolution
        return replace(config, n_train=n_train, n_test=n_test, resolution=resolution)
    if resolution is None and (config.resolution or 0) >= RESOLUTION:
        resolution = config.resolution
    return replace(config, n_train=n_train, resolution=resolution)


def audit(config: Config) -> dict[str, Any]:
    """Judge the labels of a configuration and write the report and the lists into its output folder.

    Returns what was found, as figures. With ``corrections`` the labels are judged without them too, unless that is done
    already, and the report says what changed. InputError where the arm does not tell probabilities.
    """
    known = "which the report needs: use arm tad-posterior"
    require(config.arm == "tad-posterior", f"arm {config.arm} estimates no probability for each class, {known}")
    data, out = plain_dataset(config), Path(config.out)
    _require_kept(out / "suspects.csv", config, data)
    findings = _judged(config, data)
    changed = None
    if config.corrections is not None:
        changed = changes(_judged(replace(config, corrections=None), data), findings)
    x_NCHW, by = data.x_train.to("cpu"), "index" if data.files is None else "path"
    (same, alike), group_N = duplicates(x_NCHW, findings.noisy), predictors.copies(x_NCHW)
    contradicted, picture = contradictions(findings, same, alike), pictures(data)
    why = reasons(findings, contradicted)

    suspects = [
        {"i": i, "place": findings.places[i], "note": contradicted[i], "examples": examples}
        for i, examples in zip(findings.suspects.tolist(), nearest_trusted(x_NCHW, findings, config.seed))
    ]
    groups = [{"exact": exact, "images": group} for exact, of in ((True, same), (False, alike)) for group in of]
    text = render(
        findings,
        config=config,
        by=by,
        shape="{}\xa0×\xa0{}".format(*data.image_shape[1:]),
        suspects=suspects,
        groups=groups[:GROUPS],
        n_groups=len(groups),
        in_group=IN_GROUP,
        unreadable=data.unreadable,
        folder=None if data.files is None else data.files.folder,
        stage=shlex.quote(str(pipeline.divert(config))),
        picture=picture,
        changed=changed,
        corrections=shlex.join(["--corrections", str(out / "suspects.csv")]),
    )
    store.write_atomic(out / "report.html", text.encode("utf-8", "replace"))
    lines = table(findings, by, why).to_csv(index=False, lineterminator="\n")
    store.write_atomic(out / "suspects.csv", lines.encode("utf-8", "surrogateescape"))
    images = [picture(i) if data.files is None else _served(data.files, i) for i in findings.suspects.tolist()]
    store.write_atomic(out / "labelstudio.json", json.dumps(tasks(findings, by, images, why), indent=1).encode())
    store.write_atomic(out / "labelstudio.xml", interface(findings.class_names).encode())
    estimate, low, high = findings.noise_rate
    return {
        "images": len(findings.places),
        "classes": len(findings.class_names),
        "noise_rate": estimate,
        "noise_rate_interval": [low, high],
        "flagged": int(findings.flagged.sum()),
        "precision": findings.precision,
        "recall": findings.recall,
        "duplicates": len(groups),
        "copies": 0 if group_N is None else int((torch.bincount(group_N)[group_N] > 1).sum()),
        "changed": changed,
        "out": config.out,
        "files": ["report.html", "suspects.csv", "labelstudio.json", "labelstudio.xml"],
    }


def _judged(config: Config, data: Dataset) -> Findings:
    refined = pipeline.load_refined(pipeline.divert(config))
    return Findings.of(refined, data, pipeline.load_labels(pipeline.inject_noise(config)).checked_N)


def _require_kept(file: Path, config: Config, data: Dataset) -> None:
    """InputError where ``file``, which will be written anew, holds labels that a person checked and this run lacks."""
    if file.is_file():
        labels, places = pipeline.check(config), places_of(data)
        checked = [] if labels.checked_N is None else labels.checked_N.nonzero()[:, 0].tolist()
        mine = {(places[i], data.class_names[labels.noisy_N[i]]) for i in checked}
        table = read_corrections(file)
        lost = set(zip(table[table.columns[0]], table["label"])) - mine
        advice = f"give it as --corrections {file}, move it, or choose another --out"
        require(not lost, f"{file} holds {len(lost)} labels that a person checked and this run would lose: {advice}")


def places_of(data: Dataset) -> tuple[str, ...]:
    """Of each training image (N): its path, or its place in the full training set."""
    return tuple(map(str, data.index.tolist())) if data.paths is None else data.paths


def _served(files: own.Files, i: int) -> str:
    """The address under which Label Studio serves a file below its document root, which is the folder above that of
    the images."""
    return f"/data/local-files/?d={quote(os.path.relpath(files.folder / files.paths[i], files.folder.parent))}"
