"""Students: networks with batch norm that are trained on a distilled set as RDED and CIM train them.

Legend: B batch, S synthetic images, K classes, C H W image, P flat parameters, R networks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tadlib.config import Protocol
from tadlib.distill.synthetic import Synthetic
from tadlib.errors import required
from tadlib.nn import augment, crops
from tadlib.nn.networks import Network
from tadlib.nn.training import batches
from tadlib.observer import Observer, State, decayed, fresh, step
from tadlib.rng import generator
from tadlib.state import Checkpoint, restored


def target_loss(recipe: str, temperature: float, target_BK: Tensor) -> Callable[[Tensor], Tensor]:
    """The loss against an observer's logits: RDED's KL divergence of softmaxes at ``temperature``, CIM's MSE."""
    if recipe == "cim":
        return lambda z_BK: (z_BK - target_BK).square().mean()
    log_q_BK = (target_BK / temperature).log_softmax(1)
    return lambda z_BK: (log_q_BK.exp() * (log_q_BK - (z_BK / temperature).log_softmax(1))).sum(1).mean()


@dataclass
class Loop:
    """Students in training, all at the same epoch."""

    states: list[State]

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self.states[0].epoch


def train_students(
    net: Network,
    synthetic: Synthetic,
    protocol: Protocol,
    *,
    seed: int,
    teacher: Observer | None = None,
    factor: int = 1,
    resume: Checkpoint | None = None,
    on_epoch: Callable[[Loop], None] = lambda loop: None,
) -> Tensor:
    """Parameters (R, P) of students of a set whose images are mosaics of factor² patches.

    CIM's students see each patch enlarged to full size (our choice: as mosaics, its sets teach far less), as an image
    of its own. With ``protocol.teacher`` the observer labels each batch as it is: patches shuffled, cropped (at least
    1 / factor of the area), flipped where the augmentation flips, mixed by CutMix. Otherwise the labels of the set
    count, mixed by area, under the cross entropy.

    Learning rate in epoch e of E: lr · ½(1 + cos(πe / 2E)), as in RDED's code.
    """
    x_SCHW, y_SK, device, decayed_P = synthetic.x, synthetic.y, synthetic.x.device, decayed(net)
    if protocol.recipe == "cim":
        x_SCHW, y_SK, factor = crops.decode(x_SCHW, factor), y_SK.repeat(factor**2, 1), 1
    if protocol.teacher:
        required(teacher, "a protocol with a teacher needs an observer, got none")
    flips = ("flip",) in augment.operations(protocol.augmentation)

    def one(r: int) -> State:
        random = generator(seed, "evaluate", r, "train", device=device)
        return fresh(net.init(seed, "evaluate", r), random)

    loop = Loop([one(r) for r in range(protocol.networks)])
    if resume is not None:
        loop = restored(loop, *resume, device)
    while loop.epoch < protocol.epochs:
        lr = synthetic.lr if protocol.lr is None else protocol.lr
        lr *= (1 + math.cos(math.pi * loop.epoch / protocol.epochs / 2)) / 2
        for state in loop.states:
            for index_B in batches(len(x_SCHW), protocol.batch, state.generator):
                x_BCHW = crops.shuffled(x_SCHW[index_B], factor, state.generator)
                x_BCHW = crops.resized_crops(x_BCHW, 1 / factor, state.generator)
                x_BCHW = crops.flipped(x_BCHW, state.generator) if flips else x_BCHW
                x_BCHW, y_BK = crops.cutmix(x_BCHW, y_SK[index_B], state.generator)
                loss: Callable[[Tensor], Tensor] = partial(F.cross_entropy, target=y_BK)
                if protocol.teacher and teacher is not None:
                    with torch.no_grad():
                        loss = target_loss(protocol.recipe, protocol.temperature, teacher(x_BCHW))
                step(net, state, x_BCHW, loss, lr, protocol, decayed_P)
            state.epoch += 1
        on_epoch(loop)
    return torch.stack([s.theta for s in loop.states])
