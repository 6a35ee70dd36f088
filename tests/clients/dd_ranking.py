"""Give an exported set of CIFAR-10 to DD-Ranking's evaluators; run in an environment that has it (numpy below 2).

Smaller images are enlarged to 32 pixels, since its test images have that size. Few epochs and a part of the test images
serve, because what is tested is that its evaluators read the set and learn from it. Of the soft-label evaluator the
training on soft labels is called, not the comparison with random images: in 0.2.0 that fails for labels that come with
the images (mode S), whatever these are.

    python tests/clients/dd_ranking.py EXPORT/ddranking DATA
"""

import sys
import tempfile
from pathlib import Path

import torch
from ddranking.metrics import hard_label, soft_label
from ddranking.utils import build_model
from torch.utils.data import DataLoader, Subset

EPOCHS, TESTED, IPC = 12, 500, 10
WHOLE = 80.0  # stands in for the accuracy (percent) on all images, which would take hours to train on
folder, data = Path(sys.argv[1]), sys.argv[2]
images, labels, lr = (torch.load(folder / f"{name}.pt", weights_only=True) for name in ("images", "labels", "lr"))
images = torch.nn.functional.interpolate(images, (32, 32), mode="bilinear", align_corners=False)
hard = labels.argmax(1)
assert (hard == torch.arange(10).repeat_interleave(IPC)).all()  # the order that its default labels suppose

with tempfile.TemporaryDirectory() as out:
    shared = {"dataset": "CIFAR10", "real_data_path": data, "ipc": IPC, "model_name": "ConvNet-3", "device": "cpu"}
    shared |= {
        "num_eval": 1,
        "num_epochs": EPOCHS,
        "num_workers": 0,
        "syn_batch_size": 20,
        "step_size": EPOCHS,
        "save_path": f"{out}/scores.csv",
    }
    shared |= {"data_aug_func": "none"}  # its default augmentation

    def ready(evaluator):
        """Tests on a part of the test images, in the last epoch."""
        evaluator.test_loader_syn = DataLoader(Subset(evaluator.test_loader_syn.dataset, range(TESTED)), batch_size=250)
        evaluator.test_interval = EPOCHS
        return evaluator

    hard_label.REAL_DATA_ACC_CACHE["CIFAR10-ConvNet-3"] = WHOLE
    evaluator = ready(hard_label.LabelRobustScoreHard(**shared, random_data_path=out))
    scores = evaluator.compute_metrics(image_tensor=images, hard_labels=hard, syn_lr=lr)
    assert all(torch.tensor(score).isfinite() for score in scores.values()), scores
    accuracy = WHOLE - scores["hard_label_recovery_mean"]

    kinds = {"soft_label_criterion": "sce", "loss_fn_kwargs": {}, "soft_label_mode": "S", "teacher_model_names": []}
    evaluator = ready(soft_label.LabelRobustScoreSoft(**shared, **kinds))
    net = build_model("ConvNet-3", num_classes=10, im_size=(32, 32), device="cpu")
    of_soft = evaluator._compute_soft_label_metrics(net, images, None, lr.item(), labels)
assert min(accuracy, of_soft) > 15, (accuracy, of_soft)  # percent; chance is 10
print(f"DD-Ranking: {accuracy:.1f} % with hard labels, {of_soft:.1f} % with soft labels, {scores}")
