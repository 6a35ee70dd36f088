"""Label noise: noisy labels made from true ones, or read from files."""

from tadlib.data.class_maps import ASYMMETRIC_MAPS
from tadlib.noise.corrections import corrected, corrections_checksum
from tadlib.noise.files import HUMAN_LABELS, human_checksum, list_checksum
from tadlib.noise.labels import NoisyLabels, transition
from tadlib.noise.models import FIXED_RATE, NOISE_MODELS, check, inject

__all__ = [
    "ASYMMETRIC_MAPS",
    "FIXED_RATE",
    "HUMAN_LABELS",
    "NOISE_MODELS",
    "NoisyLabels",
    "check",
    "corrected",
    "corrections_checksum",
    "inject",
    "human_checksum",
    "list_checksum",
    "transition",
]
