"""Checks of tensors, shared by every public function that takes images, labels or a network.

Legend: N samples, K classes, C H W image.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tadlib.errors import InputError, require
from tadlib.nn.images import Images

if TYPE_CHECKING:
    from tadlib.nn.networks import Network

TOLERANCE = 1e-3  # of the sum of a label distribution: what float32 and half precision leave of 1

Sizes = tuple[int | str, ...]


def require_tensor(what: str, tensor: Any, shape: Sizes, dtype: torch.dtype) -> None:
    """InputError unless ``tensor`` has ``dtype`` and ``shape``, where a letter stands for any size but 0, and asks for
    no gradient."""
    expected = f"{what} must be {shape} {dtype}".replace("'", "").replace("torch.", "")
    require(isinstance(tensor, Tensor), f"{expected}, a tensor, got {type(tensor).__name__}")
    fits = tensor.dtype == dtype and tensor.ndim == len(shape)
    fits = fits and all(n == size or (isinstance(size, str) and n > 0) for n, size in zip(tensor.shape, shape))
    got = f"{tuple(tensor.shape)} {tensor.dtype}".replace("torch.", "")
    require(fits, f"{expected}, got {got}" + ("" if tensor.numel() else ", which is empty"))
    require(not tensor.requires_grad, f"{what} must not require gradients: give them after .detach()")


def require_device(device: torch.device | str) -> None:
    """InputError unless tensors can be made on ``device``."""
    try:
        torch.empty(0, device=device)
    except Exception as error:  # of as many types as there are kinds of devices
        raise InputError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from error


def require_labels(what: str, y_N: Any, n_classes: int, n: int | str = "N") -> None:
    """InputError unless ``y_N`` is (n,) int64, by default of any length but 0, with values in [0, n_classes)."""
    require_tensor(what, y_N, (n,), torch.int64)
    bad_N = (y_N < 0) | (y_N >= n_classes)
    if bad_N.any():
        first = int(bad_N.nonzero()[0])
        require(False, f"{what} must be in [0, {n_classes}), got {int(y_N[first])} at {first}")


def require_images(
    what: str, x_NCHW: Any, shape: Sizes = ("C", "H", "W"), n: int | str = "N", used_N: Tensor | None = None
) -> None:
    """InputError unless ``x_NCHW`` is float32 of n images of ``shape`` and finite, those of ``used_N`` if given.

    Of :class:`tadlib.nn.images.Images`, whose bytes are finite, the shape is checked alone.
    """
    if isinstance(x_NCHW, Images):
        require_tensor(what, torch.empty(x_NCHW.shape, device="meta"), (n, *shape), torch.float32)
        return
    turned = isinstance(x_NCHW, Tensor) and x_NCHW.ndim == 4 and tuple(x_NCHW.shape[1:]) == (*shape[1:], shape[0])
    if turned and tuple(x_NCHW.shape[1:]) != shape:
        order = f"{what} must have their channels first, {(n, *shape)}, got {tuple(x_NCHW.shape)}".replace("'", "")
        require(False, f"{order}: give x.permute(0, 3, 1, 2)")
    require_tensor(what, x_NCHW, (n, *shape), torch.float32)
    low_N, high_N = x_NCHW.flatten(1).aminmax(dim=1)  # carries NaN on, and needs no copy of the images
    if used_N is not None:
        low_N, high_N = (torch.where(used_N, values_N, 0.0) for values_N in (low_N, high_N))
    _require_finite(what, low_N, high_N)


def require_distributions(what: str, y_NK: Any, n_classes: int, n: int | str = "N") -> None:
    """InputError unless ``y_NK`` is (n, n_classes) float32 whose rows are distributions."""
    require_tensor(what, y_NK, (n, n_classes), torch.float32)
    _require_finite(what, y_NK.sum(1))
    bad_N = (y_NK.amin(1) < 0) | ((y_NK.sum(1) - 1).abs() > TOLERANCE)
    if bad_N.any():
        first = int(bad_N.nonzero()[0])
        require(False, f"rows of {what} must be distributions over the classes, got {y_NK[first].tolist()} at {first}")


def require_weights(what: str, w_N: Any, n: int | str = "N") -> None:
    """InputError unless ``w_N`` is (n,) float32, finite and not negative."""
    require_tensor(what, w_N, (n,), torch.float32)
    _require_finite(what, w_N)
    require(bool((w_N >= 0).all()), f"{what} must not be negative, got {w_N.min().item()}")


def require_fit(
    net: "Network",
    what: str,
    x_NCHW: Any,
    n_classes: int | None = None,
    n: int | str = "N",
    used_N: Tensor | None = None,
) -> None:
    """InputError unless ``x_NCHW`` are images that ``net`` takes, on its device, and it has ``n_classes`` classes."""
    spec = net.spec
    require_images(what, x_NCHW, spec.image_shape, n, used_N)
    own, theirs = net.device.type, x_NCHW.device.type
    require(own == theirs, f"{what} must be on the network's device, {own}, got {theirs}")
    expected = f"the network has {spec.n_classes} classes, expected {n_classes}"
    require(n_classes in (None, spec.n_classes), expected)


def require_refined(net: "Network", x_NCHW: Any, y_NK: Any, w_N: Any) -> None:
    """InputError unless images, label distributions and weights belong together and to ``net``; images of weight 0 are
    not used, and may hold anything."""
    require_weights("weights", w_N)
    require_fit(net, "images", x_NCHW, n=len(w_N), used_N=w_N > 0)
    require_distributions("labels", y_NK, net.spec.n_classes, len(w_N))


def _require_finite(what: str, *values_N: Tensor) -> None:
    bad_N = ~torch.stack([value_N.isfinite() for value_N in values_N]).all(0)
    if bad_N.any():
        first, count = int(bad_N.nonzero()[0]), int(bad_N.sum())
        require(False, f"{what} must be finite, got NaN or infinity in {count} of {len(bad_N)}, first at {first}")
