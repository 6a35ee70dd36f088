"""Trust-Aware Diversion (TAD, arXiv 2502.05027) from top to bottom.

Legend: N samples, K classes, D features; f the auditor, h its features, e the epoch of E, ỹ the noisy labels.

After warm-up, in every epoch:

1. **Outer loop.** The loss of every sample, averaged over epochs, is scaled to [0, 1] within its class; two Gaussians
   are fitted to each class, and the posterior of the lower one is the trust:

       ℓ_i = −log p(ỹ_i | x_i),    ℓ̄_i ← μ ℓ̄_i + (1 − μ) ℓ_i,    u_i = (ℓ̄_i − min_k ℓ̄) / (max_k ℓ̄ − min_k ℓ̄)
       p(u | k) = π₀ N(u; m₀, σ₀²) + π₁ N(u; m₁, σ₁²),    w_i = P(component 0 | u_i)

   A class with m₁ − m₀ < δ(σ₀ + σ₁) is clean: w_i ≈ 1.
2. **Dynamic threshold.** Trusted iff w_i > τ(e), where τ relaxes from τ_start to τ_end in a line; never fewer than
   ``minimum`` · N / K samples of a class.
3. **Consistency.** The auditor's loss on augmented images A(x) gains η(e) · KL(p(· | x) ‖ p(· | A(x))) over all
   samples, with p(· | x) from the last pass over the images as they are; η ramps up after warm-up.
4. **Inner loop.** Features z = h(x); anchors a_k are w-weighted means of trusted samples, Σ their shared covariance:

       d_k = (z − a_k)ᵀ Σ⁻¹ (z − a_k),    q_k ∝ exp(−d_k / 2t),    s_k = cos(z − z̄, a_k − z̄)
       k* = argmin d,    ρ = q_{k*} (1 + s_{k*}) / 2  where argmin d = argmax s, else 0

   A candidate is believed iff ρ exceeds the α-quantile of ρ over trusted samples. An untrusted sample with a believed
   candidate is recalled where k* = ỹ and recalibrated otherwise, with soft label q and weight ρ.
5. **Iteration.** The auditor learns from the refined set. A recalibrated sample is dropped where its loss under the new
   label is larger than nearly all losses of trusted samples.

The public summaries of the paper fix these parts: class-wise dynamic mixtures on losses, consistency, trusted and
untrusted spaces, reliability from Mahalanobis distance to anchors and cosine similarity, selective pseudo-labels, and
that the loops alternate. The formulas are our choice where the summaries are silent, as are the average over epochs,
the shape of τ(e), δ, ``minimum``, the teacher of the consistency loss, the shrunk covariance, t, ρ and α.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tadlib.config import AuditorConfig, TadConfig
from tadlib.nn.training import predict
from tadlib.trust import anchors as geometry
from tadlib.trust import base, mixture
from tadlib.trust.base import TINY, Auditor, NoisyProblem, RefinedSet


@dataclass
class TadState:
    """State between two epochs: the auditor, the refined set, average losses ℓ̄ (N,) and predictions p(· | x) (N, K),
    both None in warm-up."""

    auditor: Auditor
    refined: RefinedSet
    loss: Tensor | None
    p: Tensor | None
    space_history: Tensor
    rows: list[dict]


@dataclass(frozen=True)
class Tad:
    """Trust-Aware Diversion; see the module."""

    auditor: AuditorConfig = AuditorConfig()
    settings: TadConfig = TadConfig()

    @property
    def epochs(self) -> int:
        """E."""
        return self.auditor.epochs

    def init(self, problem: NoisyProblem) -> TadState:
        """A fresh auditor; all samples are trusted."""
        refined = RefinedSet.of_labels(problem, problem.noisy)
        return TadState(Auditor.new(problem), refined, None, None, base.no_history(problem), [])

    def step(self, problem: NoisyProblem, state: TadState) -> None:
        """One epoch: train the auditor; after warm-up divide the samples and recalibrate the untrusted ones."""
        epoch, refined = len(state.rows), state.refined
        regularizer = self.regularizer(state.p, epoch)
        state.auditor.train(problem, self.auditor, refined.y, refined.weight, extra=regularizer)
        row: dict = {"epoch": epoch}
        if epoch >= self.auditor.warmup - 1:
            logits_NK, z_ND = predict(problem.net, state.auditor.theta, problem.x)
            p_NK = state.p = logits_NK.softmax(1)
            state.loss = self.average(state.loss, logits_NK, problem.noisy)
            w_N, trusted_N, outer = self.outer(problem, state.loss, epoch)
            state.refined, inner = self.inner(problem, state.refined, w_N, trusted_N, p_NK, z_ND)
            row |= outer | inner
        base.note(problem, state, row)

    def result(self, problem: NoisyProblem, state: TadState) -> RefinedSet:
        """The refined set after the last epoch."""
        return base.with_history(state)

    def average(self, before_N: Tensor | None, logits_NK: Tensor, noisy_N: Tensor) -> Tensor:
        """ℓ̄ (N,): the loss of the noisy labels, averaged with that of the epochs before."""
        loss_N = torch.nn.functional.cross_entropy(logits_NK, noisy_N, reduction="none")
        return loss_N if before_N is None else torch.lerp(loss_N, before_N, self.settings.mu)

    def tau(self, epoch: int) -> float:
        """τ(e): in a line from the first division to the last epoch."""
        c, first = self.settings, self.auditor.warmup - 1
        return c.tau_start + (c.tau_end - c.tau_start) * (epoch - first) / max(1, self.epochs - 1 - first)

    def outer(self, problem: NoisyProblem, loss_N: Tensor, epoch: int) -> tuple[Tensor, Tensor, dict]:
        """w (N,), the mask (N,) of trusted samples, and τ and the number of clean classes for the history."""
        c, k, tau = self.settings, problem.n_classes, self.tau(epoch)
        group_N, n_groups = (problem.noisy, k) if c.class_wise else (torch.zeros_like(problem.noisy), 1)
        split = mixture.split(loss_N, group_N, n_groups, delta=c.delta)
        trusted_N = split.above(tau) | mixture.smallest(loss_N, problem.noisy, k, problem.minimum(c.minimum))
        return split.w, trusted_N, {"tau": tau, "n_clean_classes": int((~split.mixture.separated).sum())}

    def inner(
        self, problem: NoisyProblem, refined: RefinedSet, w_N: Tensor, trusted_N: Tensor, p_NK: Tensor, z_ND: Tensor
    ) -> tuple[RefinedSet, dict]:
        """The refined set: trusted samples, recalled and recalibrated ones; and counts for the history."""
        c = self.settings
        a = geometry.anchors(z_ND, problem.noisy_NK, w_N.float().clamp_min(1e-6) * trusted_N)
        d_NK, s_NK = geometry.distances(a, z_ND), geometry.cosines(a, z_ND)
        t = geometry.temperature(d_NK[trusted_N], problem.noisy[trusted_N])
        found = geometry.candidates(d_NK, s_NK, t, c.criterion)
        rho_N = found.reliability
        bar = base.quantile(rho_N[trusted_N], c.alpha)
        candidate = {"label_N": found.label, "q_NK": found.q, "rho_N": rho_N}
        candidate["believed_N"] = rho_N > bar if c.alpha < 1 else torch.zeros_like(trusted_N)
        refined = replace(refined, trust=w_N)
        refined, counts = base.recalibrated(refined, trusted_N, **candidate, p_NK=p_NK, drop=c.drop)
        return refined, {"temperature": t, "bar": bar, **counts}

    def regularizer(self, p_NK: Tensor | None, epoch: int):
        """The further loss ``(logits (B, K), index (B,)) -> ()`` of an epoch; None where its weight is 0.

        Negative entropy in warm-up, which keeps the auditor from growing certain of one-way flips; then consistency.
        """
        c, warmup = self.settings, self.auditor.warmup
        eta = c.confidence_penalty if p_NK is None else c.consistency * min(1.0, (epoch - warmup + 1) / warmup)

        def extra(logits_BK: Tensor, index_B: Tensor) -> Tensor:
            log_p_BK = logits_BK.log_softmax(1)
            if p_NK is None:
                return eta * (logits_BK.softmax(1) * log_p_BK).sum(1).mean()
            p_BK = p_NK[index_B]
            return eta * (p_BK * (p_BK.clamp_min(TINY).log() - log_p_BK)).sum(1).mean()

        return extra if eta else None
