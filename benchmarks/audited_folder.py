"""An audit of a folder of files whose labels were swapped: Tiny ImageNet's JPEG images, with a known share wrong.

    python benchmarks/audited_folder.py --root DATA
    python benchmarks/audited_folder.py --root DATA --classes 10 --share .2 --seeds 1 2 3

The files of the first ``--classes`` classes are laid out under ``--out`` as links, one subfolder for each class; a
``--share`` of them, drawn at random, stands in the subfolder of another class, drawn at random too. Then the labels are
judged as ``tad audit`` judges them, with ``--preset``. ``first_100`` is the share of wrong labels among the 100 least
trusted images. Finished runs are found in ``--results`` and left alone.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sklearn.metrics import f1_score, roc_auc_score

from tadlib import audit, pipeline
from tadlib.config import Config
from tadlib.nn import speed
from tadlib.rng import generator
from tadlib.store import load_table, save_table

KEY = ["classes", "share", "seed"]


def lay_out(images: Path, folder: Path, n_classes: int, share: float, seed: int) -> dict[str, bool]:
    """Links to the files, and which of them, by path, stand in the wrong subfolder."""
    classes = sorted(path for path in images.iterdir() if path.is_dir())[:n_classes]
    files = [(k, path) for k, of in enumerate(classes) for path in sorted((of / "images").iterdir())]
    random = generator(seed, "noise", "folder")
    swapped = torch.randperm(len(files), generator=random)[: round(share * len(files))]
    to_N = torch.tensor([k for k, _ in files])
    to_N[swapped] += torch.randint(1, len(classes), (len(swapped),), generator=random)
    shutil.rmtree(folder, ignore_errors=True)
    wrong = {}
    for (true, path), label in zip(files, (to_N % len(classes)).tolist(), strict=True):
        place = Path(classes[label].name, path.name)
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).symlink_to(path.resolve())
        wrong[str(place)] = label != true
    return wrong


def measured(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The row of a run."""
    started, used = time.monotonic(), time.process_time()
    out = Path(options.out) / f"{options.classes}-{options.share:g}-{seed}"
    images = Path(options.root) / "tiny-imagenet-200" / "train"
    wrong = lay_out(images, out / "files", options.classes, options.share, seed)
    about = {"preset": options.preset, "device": options.device, "out": str(out / "audit"), "seed": seed}
    config = audit.whole(Config.from_params(dataset=f"folder:{out / 'files'}", arm="tad-posterior", **about))
    found = audit.audit(config)
    table = pd.read_csv(out / "audit" / "suspects.csv", keep_default_na=False)
    wrong_N = table["path"].map(wrong).astype(bool)
    spent = {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - used}
    origin = pipeline.trust_row(config, pipeline.divert(config))
    names = ("preset", "device", "hardware", "torch_version", "tadlib_version", "commit")
    return {
        "classes": options.classes,
        "share": options.share,
        "seed": seed,
        "images": len(table),
        "side": pipeline.dataset(config).image_shape[1],
        "auroc": roc_auc_score(wrong_N, 1 - table["trust"]),
        "f1": f1_score(wrong_N, table["flagged"].astype(str) == "True"),
        "flagged": found["flagged"],
        "first_100": wrong_N[:100].mean(),
        "noise_rate": found["noise_rate"],
        **spent,
        **{name: origin[name] for name in names},
    }


def main(arguments: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--root", required=True, help="folder that holds tiny-imagenet-200")
    made.add_argument("--classes", type=int, default=10, help="default: 10")
    made.add_argument("--share", type=float, default=0.2, help="of wrong labels (default: 0.2)")
    made.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    made.add_argument("--preset", default="lite")
    made.add_argument("--device", default="auto")
    made.add_argument("--out", default="runs/audited_folder", help="folder of the files and stages")
    made.add_argument("--results", type=Path, default=Path("results", "audited_folder.parquet"))
    options = made.parse_args(arguments)
    speed.prepare(1)
    for seed in options.seeds:
        table = load_table(options.results) if options.results.exists() else pd.DataFrame(columns=KEY)
        if (options.classes, options.share, seed) in set(table[KEY].itertuples(index=False, name=None)):
            continue
        row = measured(options, seed)
        save_table(options.results, pd.DataFrame([*table.to_dict("records"), row]))
        numbers = {name: round(row[name], 3) for name in ("auroc", "f1", "first_100", "noise_rate", "cpu_seconds")}
        print(f"seed {seed}: {numbers}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
