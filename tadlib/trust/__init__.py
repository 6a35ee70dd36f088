"""Trust methods: what the labels go through before distillation, by the name of their arm.

:mod:`tadlib.trust.tad` is the paper's method, :mod:`tadlib.trust.posterior` our extension,
:mod:`tadlib.trust.baselines` has what both are compared with.
"""

from collections.abc import Callable

from tadlib.config import AuditorConfig, PosteriorConfig, TadConfig
from tadlib.errors import known
from tadlib.trust.base import (
    RECALIBRATED,
    SPACES,
    TRUSTED,
    UNTRUSTED,
    NoisyProblem,
    RefinedSet,
    TrustMethod,
    auroc,
    checkpoint,
    refine,
)
from tadlib.trust.baselines import ConfidentLearning, CoTeaching, Labels, LossFilter, plain
from tadlib.trust.posterior import TrustPosterior
from tadlib.trust.tad import Tad

__all__ = ["ARMS", "RECALIBRATED", "SPACES", "TRUSTED", "UNTRUSTED", "NoisyProblem", "RefinedSet", "Tad"]
__all__ += ["TrustMethod", "TrustPosterior", "auroc", "checkpoint", "method", "refine"]

ARMS: dict[str, Callable[..., TrustMethod]] = {
    "vanilla": lambda auditor, tad, posterior: Labels(),
    "loss-filter": lambda auditor, tad, posterior: LossFilter(plain(auditor)),
    "co-teaching": lambda auditor, tad, posterior: CoTeaching(auditor),
    "confident-learning": lambda auditor, tad, posterior: ConfidentLearning(plain(auditor)),
    "gce": lambda auditor, tad, posterior: LossFilter(plain(auditor), gce=True),
    "tad": lambda auditor, tad, posterior: Tad(auditor, tad),
    "tad-posterior": lambda auditor, tad, posterior: TrustPosterior(auditor, posterior),
    "oracle": lambda auditor, tad, posterior: Labels(true=True),
}
"""The trust method of every arm, from the settings of auditor, TAD and posterior."""


def method(
    arm: str,
    auditor: AuditorConfig | None = None,
    tad: TadConfig | None = None,
    posterior: PosteriorConfig | None = None,
) -> TrustMethod:
    """The trust method of ``arm``, with default settings for what is left out; InputError at an unknown arm."""
    known("arm", arm, ARMS)
    return ARMS[arm](auditor or AuditorConfig(), tad or TadConfig(), posterior or PosteriorConfig())
