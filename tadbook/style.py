"""What all figures share: one colour, marker and hatch for each arm and space, all apart in greyscale too."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from torch import Tensor

WIDTH = 7.0  # inches, the width of the text

INK, MUTED, PALE = "#1a1a1a", "#6e6e6e", "#d9d9d9"
RIGHT, WRONG = "#0b5c8f", "#e07b39"  # labels that are right or wrong
WRONG_HATCH = "////"

# arm -> colour, marker, line style; darker = closer to the truth
ARMS = {
    "vanilla": ("#a6a6a6", "o", (0, (1, 1.2))),
    "loss-filter": ("#5aa9d6", "s", (0, (4, 1.5))),
    "co-teaching": ("#8fbf8f", "v", (0, (3, 1.2))),
    "confident-learning": ("#3f9a8a", "P", (0, (2, 1))),
    "gce": ("#b58fc2", "X", (0, (5, 1, 1, 1))),
    "tad": ("#e0762f", "D", "-"),
    "tad-posterior": ("#8c2d4f", "p", "-"),
    "oracle": ("#12263a", "^", (0, (6, 1.5, 1, 1.5))),
}
# method of distillation -> colour, of its family, marker, line style
METHODS = {
    "random": ("#8f8f8f", "x", (0, (1, 1.2))),
    "dsa": ("#8c2d4f", "^", "-"),
    "mtt": ("#f0a25a", "s", "-"),
    "tesla": ("#d9742b", "v", (0, (4, 1.5))),
    "ftd": ("#a84a12", "P", (0, (2, 1))),
    "datm": ("#6e2c05", "D", (0, (5, 1, 1, 1))),
    "dm": ("#0b5c8f", "o", "-"),
    "dance": ("#3f8fc4", "p", (0, (4, 1.5))),
    "ncfm": ("#12263a", "h", (0, (2, 1))),
    "rded": ("#2f7d6d", "X", "-"),
    "cim": ("#6fb39f", "*", (0, (4, 1.5))),
}
# space -> colour, hatch; from certain to unknown
SPACES = {"trusted": ("#0b5c8f", ""), "recalibrated": ("#f0b35a", "...."), "untrusted": ("#dedede", "////")}
# codes of settings as people say them
NAMES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny-imagenet": "Tiny ImageNet",
    "human:worse": "CIFAR-10N worst",
    "human:aggre": "CIFAR-10N aggregate",
    "human:random1": "CIFAR-10N random 1",
    "human:fine": "CIFAR-100N fine",
    "dm": "DM",
    "dsa": "DSA",
    "mtt": "MTT",
    "tesla": "TESLA",
    "ftd": "FTD",
    "datm": "DATM",
    "dance": "DANCE",
    "ncfm": "NCFM",
    "rded": "RDED",
    "cim": "CIM",
}
# for curves of no fixed meaning, in order
CYCLE = [("#12263a", "-"), ("#d1592a", (0, (5, 1.5))), ("#3f9a8a", (0, (1, 1.2))), ("#8f8f8f", (0, (6, 1.5, 1, 1.5)))]


def style() -> None:
    """Set matplotlib's defaults for the book's figures."""
    plt.rcParams.update(
        {
            "figure.dpi": 150,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "font.family": "DejaVu Sans",
            "font.size": 8.5,
            "axes.titlesize": 9,
            "axes.labelsize": 8.5,
            "xtick.labelsize": 7.5,
            "ytick.labelsize": 7.5,
            "legend.fontsize": 8,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.7,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "text.color": INK,
            "axes.titlelocation": "left",
            "xtick.major.width": 0.7,
            "ytick.major.width": 0.7,
            "lines.linewidth": 1.6,
            "hatch.linewidth": 0.6,
            "mathtext.fontset": "dejavusans",
            "image.interpolation": "nearest",
        }
    )


def heat() -> Colormap:
    """The perceptually uniform map of matrices: near white at 0, near black at 1."""
    import seaborn as sns  # here: it takes a second to import, and most figures go without

    return sns.color_palette("mako_r", as_cmap=True)


def array(values: Tensor | np.ndarray | Iterable[float]) -> np.ndarray:
    """Values of a tensor on any device, or of anything numpy takes, as an array."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def figure(height: float, rows: int = 1, columns: int = 1, **options) -> tuple[Figure, np.ndarray]:
    """A figure of the text's width and ``height`` inches, with its axes as an array (rows, columns)."""
    made, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, layout="constrained", **options)
    plt.close(made)  # out of pyplot's hands: a notebook shows it once, where a cell returns it
    return made, axes


def show_image(ax: Axes, pixels_CHW: Tensor) -> None:
    """An image in [0, 1] without ticks, in a thin frame."""
    image = array(pixels_CHW).transpose(1, 2, 0).clip(0, 1)
    ax.imshow(image[..., 0] if image.shape[2] == 1 else image, cmap="gray_r", vmin=0, vmax=1)
    bare(ax)


def bare(ax: Axes) -> None:
    """No ticks, all four spines, thin."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, linewidth=0.4, color=MUTED)


def percent(values) -> np.ndarray:
    """Fractions as per cent."""
    return 100 * np.asarray(values, dtype=float)


def arm_style(name: str) -> tuple[str, str, object]:
    """Colour, marker and line style of an arm; neutral ones where it is not known."""
    return ARMS.get(name, (INK, "x", "-"))
