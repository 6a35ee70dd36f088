"""Inner loop: anchors, distances, reliability, and how far a new label may be believed.

Legend: N samples, K classes, D features.

Anchors μ_k are trust-weighted class means of penultimate features z over trusted samples, with one shared, shrunk
covariance Σ. d_k(x) = (z − μ_k)ᵀ Σ⁻¹ (z − μ_k); q_k ∝ exp(−d_k / 2t); s_k = cos(z, μ_k); candidate k* = argmin d;
reliability ρ = q_{k*} (1 + s_{k*}) / 2 where both criteria agree on ``k*``, else 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tadlib.errors import known, require

TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0)
MOST_POWER = 64.0  # that probabilities are raised to, however little is sure
BISECTIONS = 17


@dataclass(frozen=True)
class Anchors:
    """Class centres ``mean`` (K, D), precision factor ``whiten`` (D, D) with Σ⁻¹ = W Wᵀ, and the mean of the
    trusted features ``origin`` (D,), about which cosines are taken."""

    mean: Tensor
    whiten: Tensor
    origin: Tensor


def ledoit_wolf(residual_ND: Tensor) -> Tensor:
    """Covariance of centred rows, shrunk towards a multiple of the identity (Ledoit & Wolf 2004) (D, D)."""
    n, d = residual_ND.shape
    covariance_DD = residual_ND.T @ residual_ND / n
    mu = covariance_DD.diagonal().mean()
    spread = covariance_DD.square().sum() / d - mu**2
    noise = (residual_ND.square().sum(1).square().sum() / n - covariance_DD.square().sum()) / (n * d)
    shrink = (noise.clamp_min(0) / spread.clamp_min(1e-30)).clamp_max(1.0)
    return (1 - shrink) * covariance_DD + shrink * mu * torch.eye(d, dtype=residual_ND.dtype, device=residual_ND.device)


def whitening(covariance_DD: Tensor) -> Tensor:
    """W (D, D) with W Wᵀ = Σ⁻¹, from a Cholesky factor; a jitter keeps dead features from making Σ singular."""
    d = len(covariance_DD)
    eye = torch.eye(d, dtype=covariance_DD.dtype, device=covariance_DD.device)
    jitter = 1e-6 * covariance_DD.diagonal().mean().clamp_min(1e-12)
    factor = torch.linalg.cholesky(covariance_DD + jitter * eye)
    return torch.linalg.solve_triangular(factor, eye, upper=False).T


def anchors(features_ND: Tensor, y_NK: Tensor, w_N: Tensor) -> Anchors:
    """Anchors and shared covariance of the samples of positive weight ``w``, under label distributions ``y``.

    Raises:
        InputError: when a class has no weight at all, for it would have no anchor; when features are not finite.
    """
    use = w_N > 0
    z, y_w = features_ND[use], y_NK[use].to(features_ND.dtype) * w_N[use, None].to(features_ND.dtype)
    require(bool(z.isfinite().all()), "features must be finite, got NaN or infinite values (did training diverge?)")
    mass_K = y_w.sum(0)
    empty = (mass_K <= 0).nonzero()[:, 0].tolist()
    require(not empty, f"every class needs a trusted sample for its anchor; classes without: {empty}")
    mean_KD = (y_w.T @ z) / mass_K[:, None]
    residual_ND = z - mean_KD[y_w.argmax(1)]
    return Anchors(mean_KD, whitening(ledoit_wolf(residual_ND)), z.mean(0))


def distances(a: Anchors, features_ND: Tensor) -> Tensor:
    """Squared Mahalanobis distances d_k (N, K) to every anchor."""
    # about the origin of the features, else most digits cancel in the difference below
    z, m = (features_ND - a.origin) @ a.whiten, (a.mean - a.origin) @ a.whiten
    return (z.square().sum(1, keepdim=True) - 2 * z @ m.T + m.square().sum(1)).clamp_min(0)


def cosines(a: Anchors, features_ND: Tensor) -> Tensor:
    """Cosine similarities s_k (N, K) to every anchor, both taken about the mean of the trusted features.

    Features after a ReLU all point into one orthant: without centring every cosine is near 1 (our choice).
    """
    z, m = features_ND - a.origin, a.mean - a.origin
    return torch.nn.functional.normalize(z, dim=1) @ torch.nn.functional.normalize(m, dim=1).T


def temperature(d_NK: Tensor, label_N: Tensor) -> float:
    """The t of a grid under which softmax(−d / 2t) gives ``label`` the highest likelihood.

    Gaussian features are over-confident in many dimensions; t is chosen on trusted samples (our choice).
    """
    nll = [torch.nn.functional.cross_entropy(-d_NK / (2 * t), label_N) for t in TEMPERATURES]
    return TEMPERATURES[int(torch.stack(nll).argmin())]


@dataclass(frozen=True)
class Candidates:
    """What the inner loop would relabel to: ``label`` (N,), ``reliability`` ρ (N,), soft label ``q`` (N, K)."""

    label: Tensor
    reliability: Tensor
    q: Tensor


def candidates(d_NK: Tensor, s_NK: Tensor, t: float, criterion: str = "both") -> Candidates:
    """Candidate labels with their reliability ρ = q_{k*} (1 + s_{k*}) / 2, 0 where distance and cosine disagree.

    ``criterion`` ``mahalanobis`` leaves the cosine out (ρ = q_{k*}), ``cosine`` the distance (ρ = (1 + s_{k*}) / 2;
    the soft label is then one-hot, for cosines are no distribution).
    """
    known("criterion", criterion, ("both", "mahalanobis", "cosine"))
    q_NK = (-d_NK / (2 * t)).softmax(1)
    similarity_NK = (1 + s_NK) / 2
    if criterion == "cosine":
        rho_N, label_N = similarity_NK.max(1)
        return Candidates(label_N, rho_N, torch.nn.functional.one_hot(label_N, d_NK.shape[1]).to(d_NK.dtype))
    label_N = d_NK.argmin(1)
    rho_N = q_NK.gather(1, label_N[:, None])[:, 0]
    if criterion == "both":
        agrees_N = s_NK.argmax(1) == label_N
        rho_N = rho_N * similarity_NK.gather(1, label_N[:, None])[:, 0] * agrees_N
    return Candidates(label_N, rho_N, q_NK)


def believed(rho_N: Tensor, reference_N: Tensor, alpha: float) -> tuple[Tensor, float]:
    """Mask (N,) of ρ above the α-quantile of ρ over the reference samples, and that quantile (our choice).

    The reference are trusted samples, so the bar sets itself: a candidate must be as reliable as an ordinary
    trusted sample, not as reliable as a number someone chose.
    """
    require(0 <= alpha <= 1, f"alpha must be in [0, 1], got {alpha}")
    reference = rho_N[reference_N]
    bar = quantile(reference, alpha) if len(reference) else float("inf")
    return rho_N > bar, bar


def calibrate(rho_N: Tensor, agrees_N: Tensor, reference_N: Tensor, n_classes: int) -> tuple[Tensor, float]:
    """Probability that a candidate label is right, the given label known (N,), and the noise rate ε (our choice).

    Reliability is a score, not a probability: an over-confident auditor would relabel at will. But how often the
    candidate *agrees* with the given label can be counted, on samples whose labels no auditor was trained on. With a
    the chance that the candidate is right, agreement is a(1 − ε) + (1 − a)c, where c = ε / (K − 1) is agreement by
    accident; its plateau at high ρ is 1 − ε. Isotonic regression of agreement on ρ thus gives a(ρ). Bayes gives
    ``aε / (aε + (1 − a)(1 − c))`` where candidate and label disagree (so where nothing is wrong nothing is
    relabelled), and ``a(1 − ε) / (a(1 − ε) + (1 − a)c)`` where they agree.

    Args:
        agrees_N: whether candidate and given label are the same.
        reference_N: mask of the samples to count on.
    """
    rho = rho_N[reference_N].double().cpu().numpy()
    agrees = agrees_N[reference_N].double().cpu().numpy()
    require(len(rho) > 0, "calibration needs at least one reference sample, got 0")
    from sklearn.isotonic import IsotonicRegression  # here: it takes a second to import, and most stages go without

    fit = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(rho, agrees)
    top = max(1, len(rho) // 20)
    plateau = min(float(agrees[rho.argsort()[-top:]].mean()), 1 - 1 / (top + 1))
    chance = (1 - plateau) / max(1, n_classes - 1)
    agreement_N = torch.from_numpy(fit.predict(rho_N.double().cpu().numpy())).to(rho_N.device)
    # a is never taken for certain: one more reference sample could have been wrong
    a_N = ((agreement_N - chance) / max(plateau - chance, 1e-6)).clamp(0, 1 - 1 / (top + 2))
    like_right_N = torch.where(agrees_N, plateau, 1 - plateau)  # p(agrees or not | candidate right)
    like_wrong_N = torch.where(agrees_N, chance, 1 - chance)
    right_N = a_N * like_right_N / (a_N * like_right_N + (1 - a_N) * like_wrong_N).clamp_min(1e-12)
    return right_N.float(), 1 - plateau


def purity(right_N: Tensor, power: float) -> float:
    """Share of labels in use that are right, by weight, if each is with the probability ``right`` and has that to the
    ``power`` as its weight: Σ r^(power + 1) / Σ r^power."""
    log_right_N = right_N.clamp_min(1e-12).log()

    def total(power: float) -> Tensor:
        return (power * log_right_N).clamp_min(-80).exp().sum()  # below, numbers are denormal: ten times the time

    return (total(power + 1) / total(power)).item()


def power_for(right_N: Tensor, target: float, least: float = 1.0) -> float:
    """The least power, not below ``least`` nor above :data:`MOST_POWER`, at which :func:`purity` reaches ``target``.

    :func:`purity` rises with the power, so bisection finds it (our choice).
    """
    low, high = least, max(least, MOST_POWER)
    if least >= high or purity(right_N, low) >= target:
        return low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if purity(right_N, middle) >= target else (middle, high)
    return high


def refined(q_NK: Tensor, in_use_N: Tensor, rest: float) -> tuple[Tensor, Tensor]:
    """What networks learn: label distributions (N, K) and weights (N,), from p(y | x, ỹ) and weights of labels in use.

    The most likely label of a sample has its weight u of ``in_use``. What is left of the sample, 1 − u, is no label in
    use, but images whose label is in doubt teach a network too, if the doubt is told: it stays as ``rest``·(1 − u)·q,
    the mass u·e + rest·(1 − u)·q in all (our choice). At ``rest`` 0 every sample has one label.
    """
    mass_NK = q_NK * (rest * (1 - in_use_N))[:, None]
    mass_NK = mass_NK.scatter_add(1, q_NK.argmax(1, keepdim=True), in_use_N[:, None])
    weight_N = mass_NK.sum(1)
    # without any mass a distribution is still asked for
    return torch.where(weight_N[:, None] > 0, mass_NK / weight_N.clamp_min(1e-30)[:, None], q_NK), weight_N


def quantile(values_N: Tensor, alpha: float) -> float:
    """The α-quantile by rank (lower neighbour); unlike ``torch.quantile`` it takes any number of values."""
    return values_N.sort().values[int(alpha * (len(values_N) - 1))].item()
