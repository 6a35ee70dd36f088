"""Students: networks with batch norm that are trained on a distilled set as RDED and CIM train them.

Legend: B batch, S synthetic images, K classes, P flat parameters.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tadlib.config import Protocol
from tadlib.distill.synthetic import Synthetic
from tadlib.errors import required
from tadlib.nn import augment, crops
from tadlib.nn.networks import Network
from tadlib.nn.training import AdamW, State, batches, weighted_loss
from tadlib.observer import Observer, decayed, step


def target_loss(recipe: str, temperature: float, target_BK: Tensor) -> Callable[[Tensor], Tensor]:
    """The loss against an observer's logits: RDED's KL divergence of softmaxes at ``temperature``, CIM's MSE."""
    if recipe == "cim":
        return lambda z_BK: (z_BK - target_BK).square().mean()
    log_q_BK = (target_BK / temperature).log_softmax(1)
    return lambda z_BK: (log_q_BK.exp() * (log_q_BK - (z_BK / temperature).log_softmax(1))).sum(1).mean()


def train_epoch(
    net: Network,
    state: State,
    synthetic: Synthetic,
    protocol: Protocol,
    *,
    lr: float,
    generator: torch.Generator,
    teacher: Observer | None = None,
    factor: int = 1,
) -> State:
    """One pass of a student over a decoded set, whose images are mosaics of factor² patches.

    Patches are shuffled, images cropped (at least 1 / factor of the area), flipped where the augmentation flips, and
    mixed by CutMix. With ``protocol.teacher`` the observer labels each batch as it is then; otherwise the labels of the
    set count, mixed by area, under the cross entropy.
    """
    rule = AdamW(lr, protocol.momentum, protocol.weight_decay * decayed(net))
    flips = ("flip",) in augment.operations(protocol.augmentation)
    w_S = synthetic.y.new_ones(len(synthetic.y))
    for index_B in batches(len(synthetic.x), protocol.batch, generator):
        x_BCHW = crops.shuffled(synthetic.x[index_B], factor, generator)
        x_BCHW = crops.resized_crops(x_BCHW, 1 / factor, generator)
        x_BCHW = crops.flipped(x_BCHW, generator) if flips else x_BCHW
        y_BK, w_B = synthetic.y[index_B], w_S[index_B]
        x_BCHW, y_BK, w_B = augment.cutmix(x_BCHW, y_BK, w_B, protocol.cutmix, generator)
        loss: Callable[[Tensor], Tensor] = partial(weighted_loss, y_BK=y_BK, w_B=w_B)
        if protocol.teacher:
            observer = required(teacher, "a protocol with a teacher needs an observer, got none")
            with torch.no_grad():
                loss = target_loss(protocol.recipe, protocol.temperature, observer(x_BCHW))
        state = step(net, state, x_BCHW, loss, rule)
    return state
