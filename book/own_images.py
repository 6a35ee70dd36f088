"""From a folder of images, with one subfolder for each noisy label, to suspects and a distilled set.

python own_images.py FOLDER
"""

import sys

import pandas as pd

from tadlib import Config, load_distilled, pipeline

config = Config.from_params(dataset=f"folder:{sys.argv[1]}", arm="tad-posterior", method="dm", preset="lite", n_test=0)
suspects = pd.read_parquet(pipeline.divert(config) / "labels.parquet").sort_values("trust")  # least trusted first
distilled = load_distilled(pipeline.distill(config))
