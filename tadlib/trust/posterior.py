"""The trust posterior: p(y | x, ỹ) under an estimated transition matrix (our extension of TAD).

Legend: N samples, K classes, V predictors.

A loss asks how unlikely the noisy label is. Where labels flip one way that is the wrong question: half of the images
that look like a class carry its wrong label, and the network learns the flip. This method asks which *true* class
explains both the image and the noisy label:

    q_i(y) ∝ p(y | x_i) · T[y, ỹ_i]^a,      T[y, ỹ] = p(ỹ | y),      w_i = q_i(ỹ_i)

p(y | x) is the weighted geometric mean of predictors, none of which knows the sample's own label: ridge regression on
patches or on embeddings, leave-one-out (:mod:`tadlib.trust.predictors`), out-of-fold probabilities of any classifier
(:mod:`tadlib.trust.confident`), and the auditor network. T is the matrix that explains the labels best
(:mod:`tadlib.trust.transition`), the weights are those under which labels that nothing was trained on are likeliest
(:mod:`tadlib.trust.pooling`), and a says how far T is to be believed (:mod:`tadlib.trust.decisions`).

1. Before the first epoch: predictions without a network, T, and the q of them.
2. In every epoch the auditor learns q of all samples whose labels are not held out. After warm-up q is computed anew
   from what the auditor predicted while it trained, each prediction made before the step that learns from it.
3. In the last epoch the auditor predicts every image, and its mirror image where images are flipped, with averaged
   parameters.
4. Trusted iff the noisy label is the most probable one and w_i exceeds the threshold; otherwise the most probable label
   replaces it if its probability of error is small, or recalls it where it is the same. Hard training labels weigh
   max q^c, where c makes them as pure as asked if q is right; what remains of a sample is learned with q as soft label.
5. Flagged, for a person to check, iff 1 − w_i exceeds what a check is worth.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tadlib.config import AuditorConfig, PosteriorConfig
from tadlib.errors import require
from tadlib.nn.training import predict
from tadlib.rng import generator
from tadlib.trust import base, calibration, decisions, pooling, predictors
from tadlib.trust.base import UNTRUSTED, Auditor, NoisyProblem, RefinedSet
from tadlib.trust.pooling import Posterior, Prediction

WARM_UP_OF_AVERAGE = 10  # steps; the average of parameters soon forgets where it began


@dataclass
class PosteriorState:
    """State between two epochs.

    ``average`` (P,) of the auditor's parameters; ``trained_on`` (N,) mask of labels that are not held out;
    ``predictions`` of all predictors but the network; ``target`` (N, K) what the auditor learns.
    """

    auditor: Auditor
    refined: RefinedSet
    average: Tensor
    trained_on: Tensor
    predictions: list[Prediction]
    target: Tensor
    space_history: Tensor
    rows: list[dict]


@dataclass(frozen=True)
class TrustPosterior:
    """The trust posterior; see the module."""

    auditor: AuditorConfig = AuditorConfig()
    settings: PosteriorConfig = PosteriorConfig()

    @property
    def names(self) -> list[str]:
        """The predictors' names."""
        return self.settings.names

    @property
    def epochs(self) -> int:
        """E; without a network one, which trains nothing."""
        return self.auditor.epochs if "network" in self.names else 1

    @property
    def flips(self) -> bool:
        """Whether an image and its mirror image are alike."""
        return "flip" in self.auditor.augmentation.split("_")

    def init(self, problem: NoisyProblem) -> PosteriorState:
        """Predictions without a network, T and the first targets; a fresh auditor. InputError without a predictor."""
        auditor = Auditor.new(problem)
        group_N = predictors.copies(problem.x)
        trained_on_N = self.trained_on(problem, group_N)
        found = []
        if "patches" in self.names:
            random = generator(problem.seed, problem.name, "patches")
            labels = problem.noisy_NK, trained_on_N, group_N
            r_NK = predictors.leave_one_out_of_patches(
                problem.x, *labels, count=self.settings.filters, mirror=self.flips, generator=random
            )
            found.append(pooling.regressed(r_NK, problem.original_N, group_N))
        for z_ND in problem.embeddings:
            r_NK = predictors.leave_one_out(z_ND.float(), problem.noisy_NK, trained_on_N, group_N)
            found.append(pooling.regressed(r_NK, problem.original_N, group_N))
        found += [pooling.unmixed(p_NK, problem.original_N) for p_NK in problem.probabilities]
        require(len(found) > 0, f"predictors must name another one than the network, got {self.settings.predictors!r}")
        state = PosteriorState(
            auditor=auditor,
            refined=RefinedSet.of_labels(problem, problem.noisy),
            average=auditor.theta,
            trained_on=trained_on_N,
            predictions=found,
            target=problem.noisy_NK,
            space_history=base.no_history(problem),
            rows=[],
        )
        state.target = self.posterior(problem, state, None).q.float()
        return state

    def trained_on(self, problem: NoisyProblem, group_N: Tensor | None = None) -> Tensor:
        """Mask (N,) of the labels that predictors are trained on: all but a share ``holdout`` of every class, and the
        copies of what is held out. Without a network none needs to be held out."""
        if "network" not in self.names:
            return torch.ones_like(problem.noisy, dtype=torch.bool)
        random = generator(problem.seed, problem.name, "holdout")
        order_N = torch.randperm(len(problem), generator=random).to(problem.x.device)
        result_N = torch.ones_like(order_N, dtype=torch.bool)
        for k in range(problem.n_classes):
            of_class = order_N[problem.noisy[order_N] == k]
            result_N[of_class[: int(self.settings.holdout * len(of_class))]] = False
        if group_N is not None:
            result_N &= ~torch.isin(group_N, group_N[~result_N])
        return result_N

    def step(self, problem: NoisyProblem, state: PosteriorState) -> None:
        """One epoch: train the auditor; after warm-up compute q and the refined set anew."""
        epoch = len(state.rows)
        p_NK = self.train(problem, state) if "network" in self.names else None
        row: dict = {"epoch": epoch}
        if p_NK is None or epoch >= self.auditor.warmup - 1:
            if p_NK is not None and epoch == self.epochs - 1:
                p_NK = self.predicted(problem, state)
            found = self.posterior(problem, state, p_NK)
            state.target = found.q.float()
            state.refined, counts = self.divided(problem, state, found, p_NK)
            kept = found.transition.diagonal().mean().item()
            row |= {"exponent": found.exponent, "kept": kept, "noise_rate": found.noise_rate.estimate} | counts
        base.note(problem, state, row)

    def result(self, problem: NoisyProblem, state: PosteriorState) -> RefinedSet:
        """The refined set after the last epoch, and T."""
        return replace(base.with_history(state), transition=pooling.best(state.predictions).transition)

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
        sides = [False, True] if self.settings.mirror and self.flips else [False]
        logits = (predict(problem.net, state.average, problem.x, mirror=mirror)[0] for mirror in sides)
        return sum(logits_NK.softmax(1) for logits_NK in logits) / len(sides)  # type: ignore[return-value]

    def posterior(self, problem: NoisyProblem, state: PosteriorState, p_NK: Tensor | None) -> Posterior:
        """Of all predictions and, where there are any, the auditor's ``p``; certain where labels are checked."""
        # only the network needs labels that it was not trained on: regressions leave each sample out
        held_out_N = None if p_NK is None or bool(state.trained_on.all()) else ~state.trained_on
        labels = problem.checked, problem.original
        return pooling.combined(state.predictions, problem.noisy, p_NK, held_out_N, *labels)

    def divided(
        self, problem: NoisyProblem, state: PosteriorState, found: Posterior, p_NK: Tensor | None
    ) -> tuple[RefinedSet, dict]:
        """The refined set under the posterior, and counts for the history."""
        c, noisy_N, q_NK, rate = self.settings, problem.noisy, found.q, found.noise_rate
        trust_N = q_NK.gather(1, noisy_N[:, None])[:, 0]
        rho_N, label_N = q_NK.max(1)
        trusted_N = (label_N == noisy_N) & (trust_N > c.threshold)
        candidate = {"label_N": label_N, "q_NK": q_NK.float(), "rho_N": rho_N.float()}
        candidate["believed_N"] = candidate["rho_N"] > 1 - c.error
        refined = replace(
            state.refined,
            trust=trust_N,
            posterior=q_NK.float(),
            flagged=decisions.flagged(trust_N, c.cost),
            noise_rate=torch.tensor([rate.estimate, rate.low, rate.high], dtype=torch.float64, device=trust_N.device),
        )
        p_NK = q_NK if p_NK is None else p_NK
        refined, counts = base.recalibrated(refined, trusted_N, **candidate, p_NK=p_NK, drop=c.drop)
        exponent = calibration.weight_exponent(rho_N, c.purity)
        hard_N = torch.where(refined.space == UNTRUSTED, 0.0, rho_N**exponent)
        y_NK, weight_N = calibration.training_targets(q_NK, hard_N, c.soft_weight)
        refined = replace(refined, y=y_NK.float(), weight=weight_N.float(), hard_weight=hard_N.float())
        return refined, counts | {"weight_exponent": exponent}
