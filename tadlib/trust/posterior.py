"""The trust posterior: p(y | x, ỹ) under an estimated transition matrix (our extension of TAD).

Legend: N samples, K classes, V predictors.

A loss asks how unlikely the noisy label is. Where labels flip one way that is the wrong question: half of the images
that look like a class carry its wrong label, and the network learns the flip. This method asks which *true* class
explains both the image and the noisy label:

    q_i(y) ∝ p(y | x_i)^b · T[y, ỹ_i],      T[y, ỹ] = p(ỹ | y),      w_i = q_i(ỹ_i)

p(y | x) is the normalised geometric mean of predictors: ridge regression on patches, leave-one-out
(:mod:`tadlib.trust.predictors`), and the auditor network. T is the matrix that explains the leave-one-out predictions
best (:mod:`tadlib.trust.transition`), b the inverse temperature on labels that nothing was trained on
(:mod:`tadlib.trust.calibration`).

1. Before the first epoch: leave-one-out predictions, T, and the q of that one predictor.
2. In every epoch the auditor learns q of all samples whose labels are not held out. After warm-up q is computed anew
   from what the auditor predicted while it trained, each prediction made before the step that learns from it.
3. In the last epoch the auditor predicts every image, and its mirror image where images are flipped, with averaged
   parameters.
4. Trusted iff w_i exceeds the threshold; otherwise the most likely label replaces the noisy one if its probability of
   error is small, or recalls it where it is the same. Hard training labels weigh max q^c, where c makes them as pure as
   asked if q is right; what remains of a sample is learned with q as soft label.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tadlib.config import AuditorConfig, PosteriorConfig
from tadlib.errors import require
from tadlib.nn.training import predict
from tadlib.rng import generator
from tadlib.trust import base, calibration, mixture, predictors, transition
from tadlib.trust.base import UNTRUSTED, Auditor, NoisyProblem, RefinedSet

FLOOR = 1e-6  # of a probability: no predictor rules a class out alone
WARM_UP_OF_AVERAGE = 10  # steps; the average of parameters soon forgets where it began


def pool(p_VNK: Sequence[Tensor]) -> Tensor:
    """log p(y | x) (N, K), float64: the normalised geometric mean of several predictors' class probabilities.

    InputError without a predictor, or where a probability is not finite.
    """
    require(len(p_VNK) > 0, "pool needs at least one predictor, got 0")
    finite = all(bool(p_NK.isfinite().all()) for p_NK in p_VNK)
    require(finite, "predictions must be finite, got NaN or infinite values")
    log_p_VNK = torch.stack([p_NK.double().clamp_min(FLOOR).log() for p_NK in p_VNK])
    return (log_p_VNK.sum(0) / len(p_VNK)).log_softmax(1)


def posterior(log_p_NK: Tensor, noisy_N: Tensor, transition_KK: Tensor, b: float = 1.0) -> Tensor:
    """q (N, K) float64: q_i(y) ∝ p(y | x_i)^b T[y, ỹ_i]."""
    return (log_p_NK.double() * b + transition_KK.clamp_min(base.TINY).log()[:, noisy_N].T).softmax(1)


@dataclass
class PosteriorState:
    """State between two epochs.

    ``average`` (P,) of the auditor's parameters; ``trained_on`` (N,) mask of labels that are not held out; ``patches``
    (N, K) leave-one-out predictions; ``transition`` (K, K) and whether it is of the kind ``alike``; ``target`` (N, K)
    what the auditor learns.
    """

    auditor: Auditor
    refined: RefinedSet
    average: Tensor
    trained_on: Tensor
    patches: Tensor
    transition: Tensor
    alike: bool
    target: Tensor
    space_history: Tensor
    rows: list[dict]


@dataclass(frozen=True)
class TrustPosterior:
    """The trust posterior; see the module."""

    auditor: AuditorConfig = AuditorConfig()
    settings: PosteriorConfig = PosteriorConfig()

    @property
    def epochs(self) -> int:
        """E."""
        return self.auditor.epochs

    @property
    def flips(self) -> bool:
        """Whether an image and its mirror image are alike."""
        return "flip" in self.auditor.augmentation.split("_")

    def init(self, problem: NoisyProblem) -> PosteriorState:
        """Leave-one-out predictions, T and the first targets; a fresh auditor."""
        auditor = Auditor.new(problem)
        trained_on_N = self.trained_on(problem)
        random = generator(problem.seed, problem.name, "patches")
        r_NK = predictors.leave_one_out_of_patches(
            problem.x, problem.noisy_NK, trained_on_N, count=self.settings.filters, mirror=self.flips, generator=random
        )
        statistics = predictors.lda_statistics(r_NK, problem.noisy)
        fit = transition.estimate(statistics)
        p_NK = statistics.probabilities(fit.transition, fit.scale)
        return PosteriorState(
            auditor=auditor,
            refined=RefinedSet.of_labels(problem, problem.noisy),
            average=auditor.theta,
            trained_on=trained_on_N,
            patches=p_NK,
            transition=fit.transition,
            alike=fit.alike,
            target=problem.held(posterior(p_NK.double().log(), problem.noisy, fit.transition)).float(),
            space_history=base.no_history(problem),
            rows=[],
        )

    def trained_on(self, problem: NoisyProblem) -> Tensor:
        """Mask (N,) of the labels that predictors are trained on: all but a share ``holdout`` of every class."""
        random = generator(problem.seed, problem.name, "holdout")
        order_N = torch.randperm(len(problem), generator=random).to(problem.x.device)
        result_N = torch.ones_like(order_N, dtype=torch.bool)
        for k in range(problem.n_classes):
            of_class = order_N[problem.noisy[order_N] == k]
            result_N[of_class[: int(self.settings.holdout * len(of_class))]] = False
        return result_N

    def step(self, problem: NoisyProblem, state: PosteriorState) -> None:
        """One epoch: train the auditor; after warm-up compute q and the refined set anew."""
        epoch = len(state.rows)
        p_NK = self.train(problem, state)
        row: dict = {"epoch": epoch}
        if epoch >= self.auditor.warmup - 1:
            if epoch == self.epochs - 1:
                p_NK = self.predicted(problem, state)
            q_NK, estimated = self.posterior(problem, state, p_NK)
            state.target = q_NK.float()
            state.refined, counts = self.divided(problem, state, q_NK, p_NK)
            row |= estimated | counts
        base.note(problem, state, row)

    def result(self, problem: NoisyProblem, state: PosteriorState) -> RefinedSet:
        """The refined set after the last epoch, and T."""
        return replace(base.with_history(state), transition=state.transition)

    def train(self, problem: NoisyProblem, state: PosteriorState) -> Tensor:
        """The auditor takes one epoch; returns its predictions on the way (N, K), each made before its step: they cost
        nothing, and none has been trained on the sample since the last epoch (our choice)."""
        decay, config = self.settings.ema, self.auditor
        p_NK = torch.full_like(state.refined.y, 1 / problem.n_classes)
        average_P = state.average.clone()
        steps = len(state.rows) * math.ceil(len(problem) / config.batch)

        def on_step(index_B: Tensor, logits_BK: Tensor, theta_P: Tensor) -> None:
            nonlocal steps
            p_NK[index_B] = logits_BK.softmax(1)
            new = max(1 - decay, WARM_UP_OF_AVERAGE / (steps + WARM_UP_OF_AVERAGE)) if decay else 1.0
            average_P.lerp_(theta_P, new)
            steps += 1

        state.auditor.train(problem, config, state.target, state.trained_on.float(), on_step=on_step)
        state.average = average_P
        return p_NK

    def predicted(self, problem: NoisyProblem, state: PosteriorState) -> Tensor:
        """Predictions of the averaged parameters (N, K), over the image and, where flips are harmless, its mirror."""
        sides = [problem.x, problem.x.flip(3)] if self.settings.mirror and self.flips else [problem.x]
        logits = (predict(problem.net, state.average, x_NCHW)[0] for x_NCHW in sides)
        return sum(logits_NK.softmax(1) for logits_NK in logits) / len(sides)  # type: ignore[return-value]

    def posterior(self, problem: NoisyProblem, state: PosteriorState, p_NK: Tensor) -> tuple[Tensor, dict]:
        """q (N, K) of the auditor's predictions ``p`` and those on patches, one-hot where labels are checked; and what
        was estimated."""
        log_p_NK = pool([p_NK, state.patches])
        held_out_N = state.trained_on if bool(state.trained_on.all()) else ~state.trained_on
        held_out = log_p_NK[held_out_N], problem.noisy[held_out_N]
        b = calibration.inverse_temperature(*held_out, state.transition)
        estimated = {
            "inverse_temperature": b,
            "kept": state.transition.diagonal().mean().item(),
            "held_out_log_likelihood": calibration.log_likelihoods(*held_out, state.transition, b).mean().item(),
        }
        return problem.held(posterior(log_p_NK, problem.noisy, state.transition, b)), estimated

    def divided(
        self, problem: NoisyProblem, state: PosteriorState, q_NK: Tensor, p_NK: Tensor
    ) -> tuple[RefinedSet, dict]:
        """The refined set under q, and counts for the history."""
        c, noisy_N = self.settings, problem.noisy
        trust_N = q_NK.gather(1, noisy_N[:, None])[:, 0]
        trusted_N = trust_N > c.threshold
        trusted_N |= mixture.smallest(-trust_N, noisy_N, problem.n_classes, problem.minimum(c.minimum))
        rho_N, label_N = q_NK.max(1)
        candidate = {"label_N": label_N, "q_NK": q_NK.float(), "rho_N": rho_N.float()}
        candidate["believed_N"] = candidate["rho_N"] > 1 - c.error
        refined = replace(state.refined, trust=trust_N)
        refined, counts = base.recalibrated(refined, trusted_N, **candidate, p_NK=p_NK, drop=c.drop)
        exponent = calibration.weight_exponent(rho_N, c.purity_alike if state.alike else c.purity)
        hard_N = torch.where(refined.space == UNTRUSTED, 0.0, rho_N**exponent)
        y_NK, weight_N = calibration.training_targets(q_NK, hard_N, c.soft_weight)
        refined = replace(refined, y=y_NK.float(), weight=weight_N.float(), hard_weight=hard_N.float())
        return refined, counts | {"weight_exponent": exponent}
