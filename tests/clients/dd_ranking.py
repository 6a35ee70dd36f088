"""Give an exported set of CIFAR-10 to DD-Ranking's evaluators; run in an environment that has it (numpy below 2).

Smaller images are enlarged to 32 pixels, since its test images have that size. Few epochs of its shallowest ConvNet and
a part of the test images serve, because what is tested is that its evaluators read the set and learn from it.

DD-Ranking 0.2.0 cannot finish either evaluation as it is. Its files stay as they are; what follows goes round four
defects, in subclasses and one replaced function, and says which of them the installed version still has:

1. ``LabelRobustScoreHard.compute_metrics`` appends each label-robust score twice, so that the columns of the table that
   it saves differ in length: ValueError.
2. ``LabelRobustScoreSoft`` has the default ``random_data_format='tensors'``, which it then refuses: ValueError. The
   value that it knows is 'tensor'.
3. ``LabelRobustScoreSoft._get_random_data_helper`` leaves ``class_map`` out when it calls ``get_random_data_tensors``:
   TypeError. With 'image' and labels that come with the images (mode S), it uses a variable that it never set.
4. ``LabelRobustScoreSoft._generate_soft_labels`` asks for ``self.teacher_model``, which is called ``teacher_models``:
   AttributeError.

    python tests/clients/dd_ranking.py EXPORT/ddranking DATA
"""

import sys
import tempfile
from contextlib import chdir
from pathlib import Path
from unittest import mock

import torch
from ddranking.metrics import hard_label, soft_label
from ddranking.utils import build_model, get_random_data_tensors
from ddranking.utils.misc import save_results
from torch.utils.data import DataLoader, Subset

EPOCHS, TESTED, IPC, NET = 4, 100, 10, "ConvNet-1"
WHOLE = 80.0  # stands in for the accuracy (percent) on all images, which would take hours to train on
CHANCE = 10.0


class Hard(hard_label.LabelRobustScoreHard):
    """The hard-label evaluator, which would decode 50,000 images to learn their classes."""

    def _get_class_indices(self, dataset, class_map, num_classes):
        labels = torch.tensor([class_map[label] for label in dataset.targets])
        return [(labels == k).nonzero()[:, 0].tolist() for k in range(num_classes)]


class Soft(soft_label.LabelRobustScoreSoft):
    """The soft-label evaluator without defects 3 and 4."""

    def _generate_soft_labels(self, images):
        with torch.no_grad():
            return torch.stack([teacher(images.to(self.device)) for teacher in self.teacher_models]).mean(0).cpu()

    def _get_random_data_helper(self, eval_iter):
        source = self.dataset, self.dst_train, self.class_to_indices, self.ipc, self.class_map, eval_iter
        images, _ = get_random_data_tensors(*source, self.random_data_path)
        return None, images, self._generate_soft_labels(images)


def stops(work, error: type[Exception]) -> bool:
    """Whether ``work()`` raises ``error``."""
    try:
        work()
    except error:
        return True
    return False


def ready(evaluator):
    """Tests on a part of the test images, in the last epoch."""
    for name in ("test_loader_real", "test_loader_syn"):
        data = getattr(evaluator, name).dataset
        setattr(evaluator, name, DataLoader(Subset(data, range(TESTED)), batch_size=TESTED))
    evaluator.test_interval = EPOCHS
    return evaluator


folder, data = Path(sys.argv[1]), str(Path(sys.argv[2]).resolve())
images, labels, lr = (torch.load(folder / f"{name}.pt", weights_only=True) for name in ("images", "labels", "lr"))
images = torch.nn.functional.interpolate(images, (32, 32), mode="bilinear", align_corners=False)
hard = labels.argmax(1)
assert (hard == torch.arange(10).repeat_interleave(IPC)).all()  # the order that its default labels suppose

with tempfile.TemporaryDirectory() as out, chdir(out):  # where it has no path it writes to the working directory
    shared = {"dataset": "CIFAR10", "real_data_path": data, "ipc": IPC, "model_name": NET, "device": "cpu"}
    shared |= {"num_eval": 1, "num_epochs": EPOCHS, "step_size": EPOCHS, "syn_batch_size": 20, "num_workers": 0}
    shared |= {"data_aug_func": "none", "random_data_path": out, "save_path": f"{out}/scores.csv"}
    for module in (hard_label, soft_label):
        module.REAL_DATA_ACC_CACHE[f"CIFAR10-{NET}"] = WHOLE

    evaluator = ready(Hard(**shared))
    with mock.patch.object(hard_label, "save_results") as saved:  # defect 1
        of_hard = evaluator.compute_metrics(image_tensor=images, hard_labels=hard, syn_lr=lr)
    found = {1: stops(lambda: save_results(saved.call_args.args[0], shared["save_path"]), ValueError)}

    # A network trained on the set labels the random images, as a teacher trained on all images would.
    teacher = build_model(NET, num_classes=10, im_size=(32, 32), device="cpu")
    evaluator._compute_hard_label_metrics(teacher, images, None, lr.item(), hard, mode="syn")
    (Path(out) / "CIFAR10" / NET).mkdir(parents=True)
    torch.save(teacher.state_dict(), Path(out) / "CIFAR10" / NET / "ckpt_best.pt")

    kinds = {"soft_label_criterion": "sce", "loss_fn_kwargs": {"temperature": 1.0}, "soft_label_mode": "S"}
    kinds |= {"teacher_dir": out, "teacher_model_names": [NET]}
    evaluator, base = ready(Soft(**shared, **kinds)), soft_label.LabelRobustScoreSoft
    found[2] = stops(lambda: base._get_random_data_helper(evaluator, 0), ValueError)
    evaluator.random_data_format = "tensor"
    found[3] = stops(lambda: base._get_random_data_helper(evaluator, 0), TypeError)
    found[4] = stops(lambda: base._generate_soft_labels(evaluator, images), AttributeError)
    of_soft = evaluator.compute_metrics(image_tensor=images, soft_labels=labels, syn_lr=lr)

for scores in (of_hard, of_soft):
    assert all(torch.tensor(score).isfinite() for score in scores.values()), scores
    accuracy = WHOLE - scores["hard_label_recovery_mean"]
    assert accuracy > 1.5 * CHANCE, scores
present = [number for number, is_there in found.items() if is_there]
print(f"DD-Ranking with hard labels: {of_hard}")
print(f"DD-Ranking with soft labels: {of_soft}")
print(f"defects of DD-Ranking gone round: {present}")
