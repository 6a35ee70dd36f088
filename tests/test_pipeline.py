"""Promises of the pipeline and its configuration: bad input is refused early, no work is lost, none is done twice."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import tadlib
from tadlib import pipeline, presets, store
from tadlib.config import ARMS, METHODS, Config, param_types
from tadlib.data import load_dataset
from tadlib.errors import InputError
from tadlib.experts import TrajectoryStore
from tadlib.store import StageFolder, load_json, load_table

TINY = {"dataset": "digits", "n_train": 200, "n_test": 100, "noise": "pairflip", "rate": 0.3, "ipc": 1, "device": "cpu"}
TINY |= {"width": 4, "depth": 2, "auditor_epochs": 4, "auditor_warmup": 2, "expert_count": 3, "expert_epochs": 4}
TINY |= {"mtt_iterations": 6, "mtt_syn_steps": 3, "mtt_expert_epochs": 2, "mtt_max_start": 2}
TINY |= {"evaluate_networks": 3, "evaluate_epochs": 4}
STAGES = ("noise", "divert", "experts", "distill", "evaluate")
COLUMNS = [
    *("dataset", "n_train", "noise", "rate_nominal", "rate_realised", "arm", "method", "ipc", "seed", "preset"),
    *("formation", "accuracy_mean", "accuracy_ci95", "n_networks", "accuracy_hard_labels", "accuracy_random_real"),
    *("trust_auroc", "trust_precision", "trust_recall"),
    *("relabel_count", "relabel_accuracy", "seconds_divert", "seconds_experts", "seconds_distill", "seconds_evaluate"),
    *("peak_memory_bytes", "device", "torch_version", "tadlib_version", "commit", "config_hash"),
]


def tiny(out: Path | str = "never-written", **changes) -> Config:
    """A run that takes about two seconds."""
    return Config.from_params(**TINY | {"out": str(out)} | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict]:
    """The output folder of a finished run, and its row. Tests that change files take a copy."""
    out = tmp_path_factory.mktemp("finished") / "runs"
    return out, pipeline.run(tiny(out))


@pytest.mark.parametrize("changed, expected", [(False, "{}"), (True, "{}+")])
def test_a_row_tells_the_commit_and_whether_the_code_was_changed_since(tmp_path, monkeypatch, changed, expected):
    package = tmp_path / "tadlib"
    package.mkdir()
    (package / "__init__.py").write_text("")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *arguments], check=True)
    (tmp_path / "notes").write_text("outside the library")
    if changed:
        (package / "__init__.py").write_text("x = 1")
    monkeypatch.setattr(tadlib, "__file__", str(package / "__init__.py"))
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert pipeline._commit.__wrapped__() == expected.format(head)


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of the finished output folder."""
    return Path(shutil.copytree(finished[0], tmp_path / "runs"))


def folders(out: Path) -> dict[str, Path]:
    """The one folder of every stage under ``out``."""
    found = {stage: list((out / stage).iterdir()) for stage in STAGES}
    assert all(len(paths) == 1 for paths in found.values())
    return {stage: paths[0] for stage, paths in found.items()}


def contents(out: Path) -> dict[str, dict]:
    """Name, size and SHA-256 of every file that the stages wrote."""
    for folder in folders(out).values():
        StageFolder(folder).verify()
    return {stage: StageFolder(folder).manifest()["files"] for stage, folder in folders(out).items()}


# Configuration


@pytest.mark.parametrize(
    "params, message",
    [
        ({"sed": 3}, "did you mean 'seed'?"),
        ({"mtt": {}}, "unknown parameter 'mtt'"),
        ({"dataset": "digit"}, "unknown data set 'digit'; expected one of: digits, "),
        ({"noise": "gaussian"}, "unknown noise 'gaussian'; expected one of: none, "),
        ({"method": "dmm"}, "unknown method 'dmm'; expected one of: mtt, tesla, "),
        ({"method": "dm", "mtt_lr_img": 5.0}, "mtt_lr_img is a setting of method mtt; the method chosen is dm"),
        ({"evaluate_network": "resnet"}, "unknown network 'resnet'; expected one of: convnet, resnet18"),
        ({"method": "dsa", "preset": "paper", "dataset": "cifar10", "ipc": 7}, "published settings of dsa for cifar10"),
        ({"preset": "tiny"}, "unknown preset 'tiny'; expected one of: smoke, lite, native, paper"),
        ({"loops": "both"}, "unknown loops 'both'"),
        ({"preset": "paper"}, "preset paper has published settings of mtt for cifar10 ipc 1"),
        ({"rate": 1.4}, r"rate must be in \[0, 1\), got 1.4"),
        ({"rate": 1}, r"rate must be in \[0, 1\), got 1.0"),
        ({"rate": -0.1}, r"rate must be in \[0, 1\), got -0.1"),
        ({"rate": math.nan}, "rate must be finite, got nan"),
        ({"rate": "0.4"}, "rate must be float, got '0.4'"),
        ({"seed": True}, "seed must be int, got True"),
        ({"seed": None}, "seed must be int, got None"),
        ({"ipc": 2.5}, "ipc must be int, got 2.5"),
        ({"ipc": "10", "preset": "paper"}, "ipc must be int, got '10'"),
        ({"ipc": 0}, "ipc must be at least 1, got 0"),
        ({"dataset": 5}, "dataset must be str, got 5"),
        ({"download": 1}, "download must be bool, got 1"),
        ({"n_train": "all"}, "n_train must be int or null, got 'all'"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"device": "tpu"}, "device 'tpu' cannot be used"),
    ],
)
def test_bad_parameters_are_refused_by_name(params, message):
    with pytest.raises(InputError, match=message):
        Config.from_params(**params)


def test_the_preset_fills_in_and_what_is_explicit_wins():
    plain, chosen = Config.from_params(), Config.from_params(width=5, mtt_iterations=7, expert_lr=0.5)
    flat = plain.to_params()
    preset = presets.settings("smoke", "digits", 10, "mtt")
    assert all(flat[name] == value for name, value in preset.items())
    changed = {name for name, value in chosen.to_params().items() if value != flat[name]}
    assert changed == {"width", "mtt_iterations", "expert_lr"}
    assert (chosen.width, chosen.mtt.iterations, chosen.expert.lr) == (5, 7, 0.5)
    lite = {"dataset": "cifar10", "preset": "lite"}
    assert Config.from_params(**lite).n_train == 10000
    assert Config.from_params(**lite, n_train=None).n_train is None
    paper = Config.from_params(dataset="cifar10", preset="paper", ipc=50)
    assert (paper.mtt.max_start, paper.mtt.lr_img, paper.mtt.lr_teacher) == (40, 1000.0, 0.001)


KINDS = [{}, TINY, {"method": "datm", "datm_lr_y": 3}, {"method": "random"}]


@pytest.mark.parametrize("params", [*KINDS, {"dataset": "cifar10", "preset": "lite", "n_train": None, "rate": 0}])
def test_params_survive_the_round_trip_through_json(params):
    config = Config.from_params(**params)
    flat = config.to_params()
    of_others = {name for name in param_types() if name.partition("_")[0] in set(METHODS) - {config.method}}
    assert flat.keys() == param_types().keys() - of_others
    assert Config.from_params(**json.loads(json.dumps(flat))) == config
    assert config.with_params(seed=5).seed == 5
    assert config.with_params(seed=5).with_params(seed=config.seed) == config


# Bad input that only data, files and folders show


@pytest.mark.parametrize(
    "params, message",
    [
        ({"ipc": 21}, "ipc must not exceed the images of a class: class 0 has 20 under the noisy labels, got 21"),
        ({"noise": "none"}, "rate must be 0 for noise none, which has the rate that it has, got 0.3"),
        ({"rate": 0}, "rate must be above 0 for noise pairflip, got 0"),
        ({"noise": "pairflip:x"}, "noise pairflip has no variants"),
        ({"noise": "asymmetric"}, "asymmetric noise follows a map between the classes of a data set"),
        ({"noise": "human:worse", "rate": 0}, "human labels exist for"),
        ({"n_train": 7}, "n_train must be an integer in"),
        ({"resolution": 9}, "resolution must be an integer in"),
        ({"depth": 4}, "depth must leave at least one pixel"),
        ({"mtt_formation": 3}, "formation must divide the sides of 8x8 images, got 3"),
        ({"norm": "batch"}, "unknown norm 'batch'"),
        ({"dataset": "cifar10", "root": "/nonexistent"}, "nonexistent"),
    ],
)
def test_check_refuses_before_anything_is_written(tmp_path, params, message):
    with pytest.raises(InputError, match=message):
        pipeline.run(tiny(tmp_path / "runs", **params))
    assert not (tmp_path / "runs").exists()


def take_labels_of(k: int, monkeypatch) -> None:
    """Leave class ``k`` no noisy label."""
    inject = pipeline.noise.inject

    def without(*args, **options):
        labels = inject(*args, **options)
        labels.noisy_N[labels.noisy_N == k] = 0
        return labels

    monkeypatch.setattr(pipeline.noise, "inject", without)


def test_a_class_without_a_noisy_label_is_refused(tmp_path, monkeypatch):
    take_labels_of(3, monkeypatch)
    with pytest.raises(InputError, match="every class needs an image; under the noisy labels none has class 3"):
        pipeline.run(tiny(tmp_path / "runs"))
    with pytest.raises(InputError, match="every class needs a sample with its label; classes without: 3"):
        pipeline.divert(tiny(tmp_path / "runs"))


def test_the_oracle_counts_images_by_their_true_labels(tmp_path, monkeypatch):
    take_labels_of(9, monkeypatch)
    pipeline.check(tiny(tmp_path / "runs", arm="oracle"))


def test_a_class_with_too_few_trusted_images_is_named_and_finished_stages_stay(tmp_path):
    config = tiny(tmp_path / "runs", ipc=20, arm="loss-filter")
    with pytest.raises(InputError, match=r"ipc must not exceed the images of a class: class \d has \d+, got 20"):
        pipeline.run(config)
    assert StageFolder(pipeline.divert(config)).is_complete()
    assert not list((tmp_path / "runs").glob("experts/*"))  # known before hours go into experts
    assert not (tmp_path / "runs" / "results.parquet").exists()


def test_a_foreign_output_folder_stays_as_it_is(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is not an output folder of tadlib"):
        pipeline.run(tiny(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


# Keys


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """Keys of all stages of a run, without doing the work."""
    monkeypatch.setattr(StageFolder, "is_complete", lambda self: True)

    def of(**changes) -> dict[str, str]:
        made = (pipeline.inject_noise, pipeline.divert, pipeline.train_experts, pipeline.distill, pipeline.evaluate)
        config = tiny(**{"out": tmp_path / "keys"} | changes)
        return {stage: function(config).name for stage, function in zip(STAGES, made)}

    return of


@pytest.mark.parametrize(
    "arm, change, first",
    [
        ("tad", {"seed": 1}, "noise"),
        ("tad", {"rate": 0.2}, "noise"),
        ("tad", {"n_train": 300}, "noise"),
        ("tad", {"arm": "oracle"}, "divert"),
        ("tad", {"tad_alpha": 0.4}, "divert"),
        ("tad", {"width": 6}, "divert"),
        ("tad", {"loops": "per-expert"}, "experts"),
        ("tad", {"expert_lr": 0.3}, "experts"),
        ("tad", {"mtt_lr_img": 3.0}, "distill"),
        ("tad", {"ipc": 2}, "distill"),
        ("tad", {"evaluate_epochs": 6}, "evaluate"),
        ("tad", {"evaluate_network": "alexnet"}, "evaluate"),
        ("tad", {"zca": True}, "divert"),
        ("vanilla", {"zca": True}, "experts"),
        ("loss-filter", {"auditor_epochs": 5}, "divert"),
        ("loss-filter", {"tad_tau_start": 0.9}, None),
        ("tad", {"posterior_holdout": 0.2}, None),
        ("tad-posterior", {"posterior_holdout": 0.2}, "divert"),
        ("tad-posterior", {"tad_alpha": 0.4}, None),
        ("vanilla", {"auditor_epochs": 5}, None),
        ("vanilla", {"width": 6}, "experts"),
        ("vanilla", {"loops": "per-expert"}, None),
        ("tad", {"device": "auto", "threads": 2, "root": "/data", "download": True}, None),
        ("tad", {"preset": "lite", **{k: v for k, v in tiny().to_params().items() if k != "preset"}}, None),
    ],
)
def test_a_change_renews_the_stages_that_depend_on_it_and_no_other(keys, arm, change, first):
    before = keys(arm=arm)
    change = {k: v for k, v in change.items() if k != "out"}
    after = keys(**{"arm": arm} | change)
    renewed = STAGES[STAGES.index(first) :] if first else ()
    assert tuple(stage for stage in STAGES if before[stage] != after[stage]) == renewed


def test_a_list_of_labels_counts_by_its_content_and_not_by_its_place(keys, tmp_path):
    labels = [i % 10 for i in range(200)]
    (tmp_path / "a.csv").write_text("\n".join(map(str, labels)))
    np.save(tmp_path / "b.npy", np.array(labels))
    options = {"rate": 0, "seed": 0}
    first = keys(noise=f"file:{tmp_path / 'a.csv'}", **options)
    assert keys(noise=f"file:{tmp_path / 'b.npy'}", **options) == first
    (tmp_path / "a.csv").write_text("\n".join(map(str, [*labels[:-1], 0])))
    changed = keys(noise=f"file:{tmp_path / 'a.csv'}", **options)
    assert all(changed[stage] != first[stage] for stage in STAGES)


@pytest.mark.parametrize("arm, method", [("tad", "mtt"), ("oracle", "mtt"), ("vanilla", "dm")])
def test_a_plan_tells_every_folder_before_any_work(tmp_path, arm, method):
    own = {"dm_iterations": 2} if method == "dm" else {}
    settings = {k: v for k, v in TINY.items() if method == "mtt" or not k.startswith("mtt")}
    config = Config.from_params(**settings | own, arm=arm, method=method, out=str(tmp_path / "runs"))
    planned = pipeline.plan(config)
    assert not (tmp_path / "runs").exists()
    assert ("experts" in planned) == (method == "mtt")
    assert pipeline.evaluate(config) == planned["evaluate"].path
    made = {name: [path.name for path in (tmp_path / "runs" / name).iterdir()] for name in planned}
    assert made == {name: [p.key] for name, p in planned.items()}


def test_one_oracle_serves_every_noise_and_its_row_tells_the_noise_of_its_run(tmp_path):
    configs = [tiny(tmp_path / "runs", arm="oracle", rate=rate) for rate in (0.2, 0.3)]
    rows = [pipeline.run(config) for config in configs]
    assert rows[0]["key"] == rows[1]["key"]
    assert [row["rate_nominal"] for row in rows] == [0.2, 0.3]
    assert rows[0]["config_hash"] != rows[1]["config_hash"]
    held = pipeline.load_distilled(tmp_path / "runs" / "distill" / pipeline.plan(configs[0])["distill"].key)
    assert held.params["noise"] == "none"


def test_the_output_folder_is_in_no_key(keys, tmp_path):
    assert keys(out=tmp_path / "here") == keys(out=tmp_path / "there")


# Noise and arms through the stages


def test_labels_of_a_file_and_noise_that_depends_on_images_reach_the_stages(tmp_path):
    drawn = pipeline.load_labels(pipeline.inject_noise(tiny(tmp_path / "runs", noise="instance", rate=0.4)))
    assert drawn.rate_realised == pytest.approx(0.4, abs=0.15)
    drawn.save(tmp_path / "given.safetensors")
    given = tiny(tmp_path / "runs", noise=f"file:{tmp_path / 'given.safetensors'}", rate=0, arm="vanilla")
    pipeline.check(given)
    back = pipeline.load_labels(pipeline.inject_noise(given))
    assert torch.equal(back.noisy_N, drawn.noisy_N)
    assert back.rate_realised == drawn.rate_realised
    row = pipeline.trust_row(given, pipeline.divert(given))
    assert row["label_accuracy"] == pytest.approx(1 - drawn.rate_realised)


@pytest.mark.parametrize("arm", ["co-teaching", "confident-learning", "gce"])
def test_a_rival_that_is_killed_resumes_to_the_same_bits(tmp_path, monkeypatch, arm):
    if arm == "confident-learning":
        pytest.importorskip("cleanlab")
    monkeypatch.setattr(pipeline, "CHECKPOINT_SECONDS", -1.0)
    whole = pipeline.load_refined(pipeline.divert(tiny(tmp_path / "whole", arm=arm)))
    checkpoint = StageFolder.save_checkpoint

    def killed(self, *args):
        checkpoint(self, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StageFolder, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            pipeline.divert(tiny(tmp_path / "killed", arm=arm))
    resumed = pipeline.load_refined(pipeline.divert(tiny(tmp_path / "killed", arm=arm)))
    assert torch.equal(resumed.trust, whole.trust)
    assert torch.equal(resumed.weight, whole.weight)


# Finished stages


def test_the_second_run_does_no_work(copy, monkeypatch):
    def state():
        return {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.is_file() and "results" not in p.name}

    before = state()
    monkeypatch.setattr(pipeline, "Work", None)  # any work would need one
    pipeline.run(tiny(copy))
    assert state() == before
    assert len(load_table(copy / "results.parquet")) == 1


READERS = {
    "labels.safetensors": lambda file: pipeline.load_labels(file.parent),
    "refined.safetensors": lambda file: pipeline.load_refined(file.parent),
    "labels.parquet": load_table,
    "expert_001.safetensors": lambda file: TrajectoryStore(file.parent).read(1, 0),
    "distilled.safetensors": pipeline.load_distilled,
    "accuracies.json": load_json,
    "manifest.json": lambda file: StageFolder(file.parent).manifest(),
}


@pytest.mark.parametrize("name", READERS)
def test_a_truncated_file_is_an_error_to_read_and_its_stage_is_computed_again(copy, finished, name):
    (file,) = [p for p in copy.rglob(name) if p.parent.parent.name == "distill" or name != "manifest.json"]
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)
    with pytest.raises(InputError, match="expert 1 in .*" if "expert" in name else name):
        READERS[name](file)
    assert not StageFolder(file.parent).is_complete()
    pipeline.run(tiny(copy))
    assert contents(copy) == contents(finished[0])


@pytest.mark.parametrize(
    "stage, name, work",
    [
        ("noise", "labels.safetensors", pipeline.divert),
        ("divert", "refined.safetensors", pipeline.distill),
        ("experts", "expert_001.safetensors", pipeline.distill),
        ("distill", "distilled.safetensors", pipeline.evaluate),
    ],
)
def test_one_changed_byte_in_an_input_is_noticed_before_work_starts(copy, monkeypatch, stage, name, work):
    path = folders(copy)[stage] / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for later in STAGES[STAGES.index(stage) + 1 :]:
        if (stage, later) != ("divert", "experts"):  # what is found before experts would be trained
            shutil.rmtree(copy / later)
    monkeypatch.setattr(pipeline, "Work", None)  # any work would need one
    with pytest.raises(InputError) as caught:
        work(tiny(copy))
    assert f"{path} is damaged" in str(caught.value)
    assert f"delete {path.parent} to have it computed anew" in str(caught.value)


def test_a_distilled_set_carries_what_its_evaluation_needs(finished, tmp_path):
    out, row = finished
    moved = shutil.copy(folders(out)["distill"] / "distilled.safetensors", tmp_path / "somewhere.safetensors")
    distilled = tadlib.load_distilled(moved)
    accuracies = load_json(folders(out)["evaluate"] / "accuracies.json")
    assert distilled.evaluate(device="cpu") == accuracies
    assert len(accuracies) == row["n_networks"] == 3
    assert distilled.evaluate(device="cpu", evaluate_networks=2) == accuracies[:2]
    assert not {"root", "out", "device", "download"} & distilled.params.keys()
    assert distilled.pixels.shape == (10, 1, 8, 8)
    with pytest.raises(InputError, match="does not hold a distilled set"):
        tadlib.load_distilled(folders(out)["divert"] / "refined.safetensors")


def test_no_tensor_file_is_unreadable_without_tadlib(finished):
    files = list(finished[0].rglob("*.safetensors"))
    assert len(files) == 6
    assert all(load_file(file) for file in files)


def test_experts_can_carry_loops_of_their_own(finished, tmp_path):
    shared = finished[0]
    own = tmp_path / "runs"
    row = pipeline.run(tiny(own, loops="per-expert"))
    assert 0 <= row["accuracy_mean"] <= 1
    stores = [TrajectoryStore(folders(out)["experts"]) for out in (shared, own)]
    assert [len(store) for store in stores] == [3, 3]
    points = [torch.stack([s.read(i, e) for i in range(3) for e in range(5)]) for s in stores]
    assert points[0].shape == points[1].shape
    assert not torch.equal(*points)


# A few iterations of every method
FEW = {
    **{m: {"syn_steps": 2, "expert_epochs": 1, "max_start": 2, "iterations": 2} for m in ("mtt", "tesla", "ftd")},
    "datm": {"syn_steps": 2, "expert_epochs": 1, "max_start": 2, "max_start_initial": 1, "iterations": 2},
    "dsa": {"iterations": 2, "outer_steps": 2, "inner_epochs": 1, "batch_real": 8},
    "dm": {"iterations": 2, "batch_real": 8},
    "dance": {"iterations": 2, "batch_real": 8, "final_epoch": 4, "formation": 2},
    "ncfm": {"iterations": 2, "batch_real": 8, "final_epoch": 4, "frequencies": 8},
    "random": {},
    "rded": {"candidates": 8, "crops": 2},
    "cim": {"steps": 2},
}


@pytest.fixture(scope="module")
def all_methods_out(tmp_path_factory) -> Path:
    """One output folder for all methods, which share the stages before distillation."""
    return tmp_path_factory.mktemp("methods") / "runs"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_every_arm(all_methods_out, method):
    base = {name: value for name, value in TINY.items() if not name.startswith("mtt_")}
    own = {f"{method}_{name}": value for name, value in FEW[method].items()}
    config = Config.from_params(**base | own | {"method": method, "out": str(all_methods_out), "evaluate_networks": 1})
    rows = [pipeline.run(each) for each in pipeline.runs(config, arm=ARMS)]
    assert [row["arm"] for row in rows] == list(ARMS)
    assert all(0 <= row["accuracy_mean"] <= 1 for row in rows)
    assert all((row["seconds_experts"] is not None) == METHODS[method].needs_experts for row in rows)
    table = load_table(all_methods_out / "results.parquet")
    assert (table["method"] == method).sum() == len(rows)


@pytest.mark.parametrize("method, kill", [("dance", "experts"), ("ncfm", "distill"), ("datm", "evaluate")])
def test_mosaics_and_controls_end_with_the_same_bits_after_a_kill(tmp_path, method, kill):
    """In the middle of a bank; of a method with one; and of evaluation, in that of the second set, whose labels are
    learned."""
    base = {name: value for name, value in TINY.items() if not name.startswith("mtt_")}
    own = {f"{method}_{name}": value for name, value in (FEW[method] | {"formation": 2, "iterations": 4}).items()}
    params = base | own | {"method": method, "evaluate_controls": True}
    if kill == "experts":
        params |= {"expert_cutmix": 0.5, "expert_schedule": "steps", "expert_momentum": 0.9}  # as published
    whole = pipeline.run(Config.from_params(**params, out=str(tmp_path / "whole")))
    killed = Config.from_params(**params, out=str(tmp_path / "killed"))
    with start(
        tmp_path / "killed", kill=kill, params=killed.to_params(), after=6 if kill == "evaluate" else 2
    ) as process:
        _, errors = process.communicate("go\n")
    assert process.returncode == -signal.SIGKILL, errors
    row = pipeline.run(killed)
    same = ("accuracy_mean", "accuracy_hard_labels", "accuracy_random_real", "formation", "arm")
    assert [row[name] for name in same] == [whole[name] for name in same]
    assert row["formation"] == 2
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert (row["accuracy_hard_labels"] == row["accuracy_mean"]) == (method != "datm")  # others' labels are hard


def test_another_architecture_can_be_evaluated_on_the_same_distilled_set(copy, finished):
    row = pipeline.run(tiny(copy, evaluate_network="alexnet"))
    assert row["evaluate_network"] == "alexnet"
    assert row["seconds_distill"] == finished[1]["seconds_distill"]  # the same stage
    assert row["key"] != finished[1]["key"]
    assert len(load_table(copy / "results.parquet")) == 2


# Interrupted stages

# Carries out one run; dies by SIGKILL in the middle of a stage: after some checkpoints and the work that follows them.
DRIVER = """
import json, os, signal, sys
from tadlib import pipeline
from tadlib.store import StageFolder

order = json.loads(sys.argv[1])
pipeline.CHECKPOINT_SECONDS = -1.0
calls, finished = [], []
save, finish = StageFolder.save_checkpoint, StageFolder.finish

def saving(self, tensors, meta):
    if self.path.parent.name == order["kill"]:
        calls.append(1)
        if len(calls) > order["after"]:
            os.kill(os.getpid(), signal.SIGKILL)
    save(self, tensors, meta)

def finishing(self, **options):
    finished.append(options["stage"])
    finish(self, **options)

StageFolder.save_checkpoint, StageFolder.finish = saving, finishing
print("ready", flush=True)
sys.stdin.readline()
pipeline.run(pipeline.Config.from_params(**order["params"]))
print(json.dumps(finished))
"""


def start(out: Path, kill: str = "", params: dict | None = None, after: int = 2) -> subprocess.Popen:
    """A process that waits for a line on its standard input and then carries out a run, the tiny one in ``out``."""
    order = json.dumps({"params": params or tiny(out).to_params(), "kill": kill, "after": after})
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", DRIVER, order], **pipes, text=True, env=environment)


@pytest.mark.parametrize("stage", ["divert", "experts", "distill", "evaluate"])
def test_a_killed_stage_goes_on_and_ends_with_the_same_bits(copy, finished, stage, monkeypatch):
    for later in STAGES[STAGES.index(stage) :]:
        shutil.rmtree(copy / later)
    with start(copy, kill=stage) as process:
        _, errors = process.communicate("go\n")
    assert process.returncode == -signal.SIGKILL, errors
    (folder,) = (copy / stage).iterdir()
    assert (folder / "checkpoint.safetensors").exists()
    assert not StageFolder(folder).is_complete()

    load, resumed = StageFolder.load_checkpoint, []

    def loading(self):
        checkpoint = load(self)
        if checkpoint is not None:
            resumed.append(self.path)
        return checkpoint

    monkeypatch.setattr(StageFolder, "load_checkpoint", loading)
    pipeline.run(tiny(copy))
    assert resumed == [folder]
    assert contents(copy) == contents(finished[0])
    assert not list(copy.rglob("checkpoint.safetensors"))


def test_a_run_that_is_killed_at_random_moments_ends_with_the_same_bits():
    done = subprocess.run([sys.executable, str(Path(__file__).with_name("kill_stages.py")), "6"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_two_processes_at_once_do_the_work_once(tmp_path, finished):
    out = tmp_path / "runs"
    with start(out) as one, start(out) as other:
        for process in (one, other):
            assert process.stdout.readline() == "ready\n", process.stderr.read()
        for process in (one, other):
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [process.communicate() for process in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0], answers
    done = [stage for text, _ in answers for stage in json.loads(text)]
    assert sorted(done) == sorted(STAGES)
    assert contents(out) == contents(finished[0])
    assert len(load_table(out / "results.parquet")) == 1


# Results


def test_a_row_has_the_columns_of_the_interface_and_is_what_the_stages_say(finished):
    out, row = finished
    table = load_table(out / "results.parquet")
    assert set(COLUMNS) <= set(table.columns)
    assert len(table) == 1
    assert set(COLUMNS) <= row.keys()
    assert row["n_train"] == 200
    assert (row["rate_nominal"], row["rate_realised"]) == (0.3, pytest.approx(0.3))
    assert row["key"] == folders(out)["evaluate"].name
    assert row["formation"] == 1
    fractions = [row[c] for c in COLUMNS if c.startswith(("accuracy_mean", "accuracy_ci95", "trust"))]
    assert all(0 <= value <= 1 for value in fractions)
    assert all(row[f"seconds_{stage}"] > 0 for stage in STAGES[1:])
    assert row["peak_memory_bytes"] > 1e6


def test_rows_of_a_run_are_replaced_and_others_kept(finished, tmp_path):
    path = tmp_path / "new" / "results.parquet"
    row = finished[1]
    vanilla = row | {"arm": "vanilla", "config_hash": "v", "accuracy_mean": 0.1}
    vanilla |= {"trust_auroc": None, "relabel_accuracy": None}
    pipeline.merge_results(path, pd.DataFrame([row, vanilla]))
    pipeline.merge_results(path, pd.DataFrame([row | {"seed": 1, "config_hash": "s"}]))
    pipeline.merge_results(path, pd.DataFrame([row | {"accuracy_mean": 0.5}]))
    table = load_table(path)
    assert table[["arm", "seed"]].values.tolist() == [["tad", 0], ["tad", 1], ["vanilla", 0]]
    assert table["accuracy_mean"].tolist() == [0.5, row["accuracy_mean"], 0.1]
    assert table["trust_auroc"].isna().tolist() == [False, False, True]
    assert table["ipc"].dtype == "int64"
    assert list(table.columns) == list(row)


def test_runs_are_all_arms_and_seeds():
    found = pipeline.runs(tiny(), arm=("vanilla", "tad"), seed=(0, 1))
    assert [(c.arm, c.seed) for c in found] == [("vanilla", 0), ("tad", 0), ("vanilla", 1), ("tad", 1)]
    assert pipeline.runs(tiny()) == [tiny()]


@pytest.mark.parametrize(
    "module, renewed",
    [
        ("rng.py", {"noise", "embed", "observer", "divert", "experts", "distill", "evaluate"}),
        ("nn/training.py", {"observer", "divert", "experts", "distill", "evaluate"}),
        ("noise/models.py", {"noise"}),
        ("data/datasets.py", {"noise", "embed"}),
        ("trust/tad.py", {"divert", "experts", "distill"}),
        ("experts.py", {"experts", "distill"}),
        ("matching.py", {"distill"}),
        ("distill/mtt.py", {"distill"}),
        ("evaluate.py", {"evaluate"}),
        ("cli.py", set()),
        ("export.py", set()),
    ],
)
def test_a_stage_s_key_holds_the_code_of_all_that_it_computes_with(tmp_path, monkeypatch, module, renewed):
    """Or a change there would find the old results and pass them off as new ones. Keys of later stages follow, since a
    key holds those of its inputs."""
    package = Path(shutil.copytree(store.PACKAGE, tmp_path / "tadlib", ignore=shutil.ignore_patterns("__pycache__")))
    monkeypatch.setattr(store, "PACKAGE", package)

    def versions() -> dict[str, str]:
        return pipeline._code_versions.__wrapped__()

    before, code = versions(), (package / module).read_text()
    opening, docstring, rest = code.split('"""', 2)
    (package / module).write_text(f'{opening}"""Other words."""{rest}\n# and a comment\n')
    assert docstring
    assert versions() == before
    (package / module).write_text(f"{code}\nCHANGED = True\n")
    assert {stage for stage, version in versions().items() if version != before[stage]} == renewed


def test_a_row_of_labels_tells_its_place_in_the_whole_training_set(tmp_path):
    """A preset may judge a part of the data; who corrects a list of labels needs places in all of it."""
    config = tiny(tmp_path / "runs", noise="none", rate=0.0, arm="vanilla", n_train=200)
    table = pd.read_parquet(pipeline.divert(config) / "labels.parquet")
    everything = load_dataset("digits").y_train
    assert len(table) == 200 < len(everything)
    assert table["index"].is_unique
    assert everything[table["index"].tolist()].tolist() == table["given_label"].tolist()
    assert table["index"].max() > 200
