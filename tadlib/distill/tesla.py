"""TESLA: trajectory matching with an approximate gradient (Cui et al., ICML 2023).

MTT's loop; each step's gradient is taken as if the parameters at which it is evaluated did not depend on the images
(:mod:`tadlib.matching`, ``tesla``). ``gradient="exact"`` gives the true one under the same settings. Its soft labels
assigned by an expert, meant for ImageNet-1K, are left out: DATM learns soft labels.
"""

from tadlib.distill.loop import driver
from tadlib.distill.mtt import advance, start

distill = driver(start, advance)
