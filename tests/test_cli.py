"""Promises of the command ``tad``: exit statuses, one JSON document, errors without tracebacks, nothing lost."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from torchvision.io import decode_image

import tadlib
from tadlib import cli, noise, pipeline, presets
from tadlib.config import ARMS, METHODS, param_types
from tadlib.data import DATASETS
from tadlib.distilled import Distilled
from tadlib.errors import InputError
from tadlib.store import load_json, load_table, load_tensors

TINY = """--noise pairflip --rate 0.3 --n-train 200 --n-test 100 --ipc 1 --device cpu --set width=4 auditor_epochs=4
    auditor_warmup=2 expert_count=2 expert_epochs=4 mtt_iterations=4 mtt_syn_steps=3 mtt_expert_epochs=2 mtt_max_start=2
    evaluate_networks=2 evaluate_epochs=4"""


def tiny(*more: object) -> list[str]:
    """Options of a run that takes a second; what comes first in ``more`` adds to its settings."""
    return [*TINY.split(), *map(str, more)]


def tad(*args: object, **options) -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "import sys; from tadlib.cli import main; sys.exit(main())", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, **options)


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Path, dict]:
    """Output folder and JSON document of one run over three arms, in a process of its own."""
    out = tmp_path_factory.mktemp("cli") / "runs"
    done = tad("run", *tiny("--arm", "vanilla", "tad", "oracle", "--out", out, "--json"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bar: not a terminal
    return out, json.loads(done.stdout)


@pytest.fixture(scope="module")
def distilled(ran) -> Path:
    """The folder of a distilled set."""
    return sorted((ran[0] / "distill").iterdir())[0]


# Reading arguments


def test_help_does_without_torch_and_tells_defaults_and_units():
    code = """
import sys
from tadlib.cli import main
try:
    main(["run", "--help"])
finally:
    assert "torch" not in sys.modules and "pandas" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = re.sub(r"[│\s]+", " ", done.stdout)
    for name in cli.RunOptions.__dataclass_fields__:
        assert f"--{name.replace('_', '-')} " in text
    for told in ("(default: digits)", "(default: 10)", "(default: smoke)", "in pixels", "in [0, 1)"):
        assert told in text


@pytest.mark.parametrize(
    "option, names",
    [
        ("dataset", DATASETS),
        ("noise", noise.NOISE_MODELS),
        ("arm", ARMS),
        ("method", METHODS),
        ("preset", presets.PRESETS),
    ],
)
def test_help_names_every_choice(capsys, option, names):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["run", "--help"])
    text = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    section = text[text.index(f"--{option} ") :].split("(default:")[0]
    assert all(name in section for name in names)


@pytest.mark.parametrize("args", [[], ["rum"], ["run", "--sed", "1"], ["run", "--seed", "x"], ["export"]])
def test_arguments_that_cannot_be_read_exit_2(capsys, args):
    with pytest.raises(SystemExit) as exit:
        cli.main(args)
    assert exit.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err


def test_the_version_is_told(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tad {tadlib.__version__}\n"


BAD = [
    (["--dataset", "digit"], "unknown data set 'digit'"),
    (["--noise", "fog"], "unknown noise 'fog'"),
    (["--arm", "tad", "tadd"], "unknown arm 'tadd'"),
    (["--method", "dmm"], "unknown method 'dmm'"),
    (["--preset", "huge"], "unknown preset 'huge'"),
    (["--noise", "pairflip", "--rate", "1.4"], "rate must be in [0, 1), got 1.4"),
    (["--ipc", "1000"], "ipc must not exceed the images of a class"),
    (["--dataset", "cifar10"], "--root"),
    (["--set", "mtt_lrimg=3"], "unknown parameter 'mtt_lrimg'; did you mean 'mtt_lr_img'?"),
    (["--set", "width=wide"], "width must be int, got 'wide'"),
    (
        ["--method", "rded", "--set", "evaluate_recipe=dsa"],
        "evaluate_teacher is for recipes rded and cim, got recipe 'dsa', the preset's or the default: give it too",
    ),
    (["--set", "width"], "--set takes NAME=VALUE, got 'width'"),
    (["--set", "seed=3"], "seed has an option of its own, --seed"),
    (["--set", "width=4", "width=8"], "--set gives width twice"),
    (["--ipc", "2", "--set", "ipc=3"], "ipc is given twice, by --ipc and by --set"),
    (
        ["--arm", "tad-posterior", "--predictors", "patches", "--set", "posterior_predictors=patches"],
        "posterior_predictors is given twice, by --predictors and by --set",
    ),
    (["--arm", "tad-posterior", "--set", "posterior_predictors=patches 'x"], "predictors cannot be read: No closing"),
    (["--arm"], "--arm and --seed need at least one value each"),
]


@pytest.mark.parametrize("command", ["run", "distill"])
@pytest.mark.parametrize("args, message", BAD)
def test_bad_input_exits_2_before_any_run_starts(tmp_path, monkeypatch, capsys, command, args, message):
    monkeypatch.setattr(pipeline, "Work", None)  # any work would need one
    assert cli.main([command, "--out", str(tmp_path / "runs"), "--json", *args]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("tad: error: ")
    assert message in said.err
    assert len(said.err.splitlines()) == 1


def test_a_process_exits_with_the_status_of_main(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    done = tad("run", "--out", tmp_path, "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"tad: error: {tmp_path} is not an output folder of tadlib: it holds other files\n"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# Whole runs


def test_run_prints_one_document_with_a_row_for_every_arm(ran):
    out, document = ran
    assert [row["arm"] for row in document["rows"]] == ["vanilla", "tad", "oracle"]
    assert document["failed"] == []
    table = load_table(out / "results.parquet")
    assert len(table) == 3
    assert set(table["accuracy_mean"]) == {row["accuracy_mean"] for row in document["rows"]}
    assert len(list((out / "noise").iterdir())) == 2  # shared; the oracle's is none
    assert document["gap_closed"] == {}  # tad was not run on clean labels


def test_the_table_is_in_percent_and_finished_runs_are_only_read(ran, monkeypatch, capsys):
    out, document = ran
    monkeypatch.setattr(pipeline, "Work", None)
    assert cli.main(["run", *tiny("--arm", "tad", "tad", "--out", out)]) == 0
    header, row, *_ = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["arm", "seed"]
    accuracy = document["rows"][1]["accuracy_mean"]
    assert row.split()[:4] == ["tad", "0", f"{100 * accuracy:.1f}", "±"]
    assert len(row) == len(header)
    assert all(f"{stage} s" in header for stage in ("divert", "experts", "distill", "evaluate"))


@pytest.mark.parametrize(
    "error, status",
    [(RuntimeError("out of luck"), 1), (InputError("no"), 2)],
)
def test_a_failing_run_costs_no_other_its_row(ran, monkeypatch, capsys, error, status):
    run = pipeline.run

    def failing(config):
        if config.arm == "tad":
            raise error
        return run(config)

    monkeypatch.setattr(pipeline, "run", failing)
    args = tiny("--arm", "vanilla", "tad", "oracle", "--out", ran[0], "--json")
    assert cli.main(["run", *args]) == status
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert [row["arm"] for row in document["rows"]] == ["vanilla", "oracle"]
    assert [(f["arm"], f["seed"]) for f in document["failed"]] == [("tad", 0)]
    assert said.err.splitlines()[-1].startswith("tad: error: arm tad, seed 0: ")
    assert ("Traceback" in said.err) == isinstance(error, RuntimeError)


def test_a_disk_that_cannot_be_written_stops_the_command(ran, monkeypatch, capsys):
    tried = []

    def failing(config):
        tried.append(config.arm)
        raise OSError("cannot write x: No space left on device")

    monkeypatch.setattr(pipeline, "run", failing)
    assert cli.main(["run", *tiny("--arm", "vanilla", "tad", "oracle", "--out", ran[0], "--json")]) == 1
    said = capsys.readouterr()
    line = "tad: error: arm vanilla, seed 0: cannot write x: No space left on device; 2 more not tried\n"
    assert (tried, said.err) == (["vanilla"], line)
    assert [f["error"] for f in json.loads(said.out)["failed"]][1:] == ["not tried"] * 2


def test_ctrl_c_exits_130_and_leaves_what_is_finished(tmp_path):
    out = tmp_path / "runs"
    command = [sys.executable, "-c", "import sys; from tadlib.cli import main; sys.exit(main())", "run"]
    args = [word.replace("mtt_iterations=4", "mtt_iterations=1000000") for word in tiny("--arm", "tad", "--out", out)]
    # a shell starts what it puts into the background with SIGINT ignored, and children inherit that
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        [*command, *args], **pipes, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    ) as process:
        try:
            deadline = time.monotonic() + 300
            while not (out / "distill").exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            printed, said = process.communicate(timeout=300)
        finally:
            process.kill()
    assert (process.returncode, printed) == (130, ""), said
    assert said == "tad: error: interrupted; the same command goes on from the last checkpoint\n"
    assert all(list((out / stage).glob("*/manifest.json")) for stage in ("noise", "divert", "experts"))


@pytest.mark.parametrize("swallowed", ["as another error", "whole"])
@pytest.mark.parametrize("command", ["run", "divert"])
def test_ctrl_c_ends_a_command_whatever_a_library_makes_of_it(command, swallowed, tmp_path, monkeypatch, capsys):
    tried = []

    def work(config):
        tried.append(config.arm)
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            if swallowed == "as another error":
                raise ValueError("could not determine the shape") from error
        return {}

    monkeypatch.setattr(pipeline, command, work)
    arms = ["vanilla", "tad"] if command == "run" else ["tad"]
    # where tests are started in the background SIGINT is ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert cli.main([command, *tiny("--arm", *arms, "--out", tmp_path)]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    said = capsys.readouterr()
    line = "tad: error: interrupted; the same command goes on from the last checkpoint\n"
    assert (tried, said.out, said.err) == (arms[:1], "", line)


@pytest.mark.parametrize("args", [["run", "--help"], ["info"]])
def test_a_reader_that_has_seen_enough_is_no_error(args):
    command = [sys.executable, "-c", "import sys; from tadlib.cli import main; sys.exit(main())", *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(300) == 0


# Single stages


def test_divert_writes_the_refined_set(tmp_path, capsys):
    out = tmp_path / "refined"
    assert cli.main(["divert", *tiny("--out", out, "--json")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["files"] == ["history.parquet", "labels.parquet", "metrics.json", "refined.safetensors"]
    table = load_table(out / "labels.parquet")
    assert len(table) == 200
    interface = {"index", "given_label", "trust", "space", "label", "reliability", "true_label"}
    assert interface <= set(table.columns)
    metrics = load_json(out / "metrics.json")
    assert metrics == document["metrics"]
    assert metrics["n_trusted"] == (table["space"] == "trusted").sum()
    assert metrics["rate_realised"] == pytest.approx((table["given_label"] != table["true_label"]).mean())
    assert len(load_table(out / "history.parquet")) == 4

    plain = "--noise pairflip --rate 0.3 --n-train 200 --n-test 100 --device cpu --arm vanilla --out"
    assert cli.main(["divert", *plain.split(), str(out), "--ipc", "99"]) == 0  # ipc is for distillation alone
    assert (load_table(out / "labels.parquet")["space"] == "trusted").all()
    assert not (out / "history.parquet").exists()  # of the other arm
    capsys.readouterr()
    assert cli.main(["divert", "--arm", "vanilla", "tad", "--out", str(out)]) == 2
    assert "expected one arm and one seed" in capsys.readouterr().err


def test_distill_tells_where_the_set_lies_and_evaluate_reads_it(ran, capsys):
    out, document = ran
    row = document["rows"][1]
    args = tiny("--arm", "tad", "--out", out, "--json")
    assert cli.main(["distill", *args]) == 0
    (told,) = json.loads(capsys.readouterr().out)["runs"]
    assert Path(told["path"]).is_file()
    assert cli.main(["evaluate", *args]) == 0
    (of_run,) = json.loads(capsys.readouterr().out)["runs"]
    assert cli.main(["evaluate", told["path"], "--device", "cpu", "--json"]) == 0
    (of_path,) = json.loads(capsys.readouterr().out)["runs"]
    assert of_run == of_path
    assert of_run["accuracy_mean"] == row["accuracy_mean"]
    assert of_run["accuracy_ci95"] == row["accuracy_ci95"]
    for option in ("--ipc", "--out"):
        assert cli.main(["evaluate", told["path"], option, "3"]) == 2
        assert f"{option} is not for a distilled set, which was made with its own" in capsys.readouterr().err


def test_export_writes_pictures_tensors_and_recipe(distilled, tmp_path, capsys):
    out = tmp_path / "export"
    assert cli.main(["export", str(distilled), "--out", str(out)]) == 0
    files = sorted(path.relative_to(out / "png").as_posix() for path in out.rglob("*.png"))
    assert files == [f"{k:03d}_{k}/000.png" for k in range(10)]
    ours = pipeline.load_distilled(distilled)
    tensors = load_tensors(out / "images.safetensors")
    assert torch.equal(tensors["x"], ours.synthetic.x)
    assert torch.equal(tensors["y"], ours.synthetic.y)
    picture = decode_image(str(out / "png" / files[3]))
    assert torch.equal(picture, (ours.pixels[3].clamp(0, 1) * 255).round().to(torch.uint8))
    recipe = load_json(out / "recipe.json")
    assert recipe["learning_rate"] == ours.synthetic.lr
    assert recipe["params"] == ours.params
    assert recipe["mean"] == list(ours.mean)
    assert 0 <= recipe["clamped"] <= 1

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    capsys.readouterr()
    assert cli.main(["export", str(distilled), "--out", str(tmp_path / "mine")]) == 2
    assert "is not an output folder of tadlib" in capsys.readouterr().err


def test_info_tells_what_a_folder_or_file_holds(ran, distilled, tmp_path, capsys):
    assert cli.main(["info", str(distilled), "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert (manifest["stage"], manifest["verified"], manifest["key"]) == ("distill", True, distilled.name)
    assert manifest["files"].keys() == {"distilled.safetensors", "history.parquet"}
    assert cli.main(["info", str(distilled / "distilled.safetensors"), "--json"]) == 0
    held = json.loads(capsys.readouterr().out)
    assert held["images"] == [10, 1, 8, 8]
    assert held["params"]["ipc"] == 1
    assert held["verified"]
    moved = shutil.copy(distilled / "distilled.safetensors", tmp_path)
    assert cli.main(["info", str(moved), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == held | {"path": str(moved), "verified": False}
    for folder in ran[0].glob("*/*/"):
        assert cli.main(["info", str(folder)]) == 0
        assert "all match" in capsys.readouterr().out


def test_info_notices_one_changed_byte(distilled, tmp_path, capsys):
    copy = tmp_path / distilled.name
    copy.mkdir()
    for file in distilled.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    damaged = copy / "distilled.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    for path in (copy, damaged):
        assert cli.main(["info", str(path)]) == 2
        assert f"tad: error: {damaged} is damaged" in capsys.readouterr().err
    assert cli.main(["info", str(tmp_path)]) == 2
    assert "is not a finished stage" in capsys.readouterr().err


def test_the_names_that_set_takes_are_listed_with_their_meaning(capsys):
    assert cli.main(["info", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["settings"]
    options = set(cli.RunOptions.__dataclass_fields__)
    assert set(listed) == set(param_types()) - options
    assert listed["mtt_lr_img"] == {"default": 100.0, "meaning": "Learning rate of the images."}
    assert cli.main(["info"]) == 0
    assert "\nwidth=128: Channels of the ConvNet.\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args, message",
    [
        (["--method", "dm", "--set", "mtt_lrimg=3"], "unknown parameter 'mtt_lrimg'; did you mean 'mtt_lr_img'?"),
        (["--method", "dm", "--set", "mtt_lr_img=high"], "mtt_lr_img must be float, got 'high'"),
        (["--threads", "100000"], "threads must not exceed the"),
        (["--set", "width=1e30"], "width must be in [1, 65536], got"),
        (["--set", "depth=1e9"], "depth must be in [1, 16], got"),
    ],
)
def test_a_setting_that_is_wrong_or_beyond_this_machine_is_refused(tmp_path, capsys, args, message):
    assert cli.main(["run", "--out", str(tmp_path / "runs"), *args]) == 2
    assert capsys.readouterr().err.startswith(f"tad: error: {message}")


@pytest.mark.parametrize(
    "options, idle",
    [
        ({"arm": ("vanilla", "oracle"), "set": ("auditor_epochs=9", "width=4")}, "auditor_epochs"),
        ({"arm": ("vanilla", "tad"), "set": ("auditor_epochs=9",)}, ""),
        ({"set": ("posterior_holdout=0.2", "tad_mu=0")}, "posterior_holdout"),
        ({"arm": ("tad",), "predictors": ("patches",)}, "posterior_predictors"),
        ({"predictors": ("patches",)}, ""),
        ({"method": "random", "set": ("expert_epochs=9", "dm_iterations=3")}, "expert_epochs, dm_iterations"),
        ({"method": "dm", "set": ("observer_epochs=9", "dm_iterations=3")}, "observer_epochs"),
        ({"set": ("method=dm", "dm_iterations=3")}, ""),
    ],
)
def test_a_setting_of_another_arm_or_method_brings_a_warning(tmp_path, capsys, options, idle):
    """So that a shell may loop over arms with the same settings."""
    cli.configurations(cli.Run(out=str(tmp_path / "runs"), device="cpu", **options))
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert [line.rpartition(": ")[2] for line in said] == ([idle] if idle else [])
    assert all(line.startswith("tad: warning: no effect on ") for line in said)


def test_a_warning_is_one_line_like_every_other(distilled, capsys):
    command = ["evaluate", str(distilled), "--device", "cpu", "--set", "evaluate_lr=1e30"]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(command) == 0
    told = "tad: warning: 2 of 2 networks diverged in evaluation and count with the accuracy of one class; "
    assert capsys.readouterr().err == f"{told}their learning rate was 1e+30\n"


@pytest.mark.parametrize("setting", ["zca=true", "resolution=4", "ipc=3", "noise=none", "n_train=200"])
def test_evaluation_of_a_finished_set_takes_the_settings_that_count_for_it_and_no_others(
    distilled, monkeypatch, capsys, setting
):
    assert cli.main(["evaluate", str(distilled), "--device", "cpu", "--set", setting]) == 2
    name = setting.partition("=")[0]
    assert capsys.readouterr().err.startswith(f"tad: error: {name} is not for a distilled set")
    asked: list[dict] = []
    monkeypatch.setattr(Distilled, "evaluate", lambda self, **given: asked.append(given) or [0.5])
    alone = ["evaluate", str(distilled), "--device", "cpu"]
    for more in (["--seed", "3", "--n-test", "50"], ["--seed", "3", "--set", "n_test=50", "evaluate_networks=1"], []):
        assert cli.main([*alone, *more]) == 0
    assert [(given.get("seed"), given.get("n_test")) for given in asked] == [(3, 50), (3, 50), (None, None)]
    assert asked[1]["evaluate_networks"] == 1
    assert cli.main([*alone, "--seed", "1", "2"]) == 2


def test_the_home_folder_is_understood_everywhere(ran, distilled, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    short = (
        "--n-train 200 --n-test 50 --ipc 1 --method random --arm vanilla --device cpu --set width=4 evaluate_epochs=2"
    )
    assert cli.main(["run", "--out=~/runs", *short.split()]) == 0
    assert cli.main(["export", str(distilled), "--out=~/export"]) == 0
    assert cli.main(["info", "~/export"]) == 2  # no stage, but found
    assert "home/export is not a finished stage" in capsys.readouterr().err
    assert (tmp_path / "home/runs/results.parquet").is_file()
    assert not list((tmp_path / "cwd").iterdir())


@pytest.mark.parametrize("name", ["x" * 300, "d/" * 3000, "\0", "loop"])
def test_a_path_that_the_system_refuses_is_one_line(tmp_path, capsys, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for args in (["run", "--out"], ["run", "--root"], ["info"], ["export"], ["evaluate"]):
        assert cli.main([*args, f"{tmp_path}/{name}"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("tad: error: cannot use the path")
        assert len(said) < 300


def test_a_finished_folder_may_be_read_only(ran, tmp_path, capsys):
    """A small file system that is mounted again for reading alone; where none can be mounted the test skips."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", mount], capture_output=True).returncode:
        pytest.skip("no file system can be mounted")
    try:
        shutil.copytree(ran[0], mount / "runs")
        args = tiny("--arm", "tad", "--out", mount / "runs")
        assert cli.main(["divert", *args]) == 0
        subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
        for command in ("run", "divert", "distill", "evaluate"):
            assert cli.main([command, *args]) == 0, capsys.readouterr().err
        capsys.readouterr()
        assert cli.main(["run", *args, "--seed", "7"]) == 1
        said = capsys.readouterr().err
        assert "Read-only file system" in said
        assert len(said.splitlines()) == 1
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_full_disk_keeps_what_is_finished_and_the_run_goes_on_when_there_is_room(ran, tmp_path, capsys):
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", mount], capture_output=True).returncode:
        pytest.skip("no file system can be mounted")
    try:
        args, kept = tiny("--arm", "tad", "--out", mount / "runs"), {}
        for size in (16, 32, 48, 64, 80, 96, 112, 128, 160, 200):
            subprocess.run(["mount", "-o", f"remount,size={size}k", mount], check=True)
            status = cli.main(["run", *args])
            said = capsys.readouterr().err.splitlines()
            assert status == 0 or len(said) == 1, said
            done = {path: path.stat().st_mtime_ns for path in mount.rglob("manifest.json")}
            assert kept.items() <= done.items()  # no finished stage is done again
            kept = done
        subprocess.run(["mount", "-o", "remount,size=64m", mount], check=True)
        assert cli.main(["run", *args]) == 0
        for stage in ("divert", "experts", "distill", "evaluate"):
            (manifest,) = (mount / "runs" / stage).glob("*/manifest.json")
            assert load_json(manifest)["files"] == load_json(ran[0] / manifest.relative_to(mount / "runs"))["files"]
    finally:
        subprocess.run(["umount", mount], check=True)


def test_commands_at_once_in_one_folder_share_stages_and_lose_no_row(tmp_path, ran):
    """Arms with a stage in common, and the same arm twice, started together; bits are those of one after the other."""
    script = "import sys; from tadlib.cli import main; sys.exit(main())"
    out = tmp_path / "runs"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, "run", *tiny("--arm", *arms, "--out", out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for arms in (("vanilla",), ("tad", "oracle"), ("oracle", "tad"))
    ]
    for process in started:
        said = process.communicate()[1].splitlines()
        assert process.returncode == 0, said
        assert all(line.startswith(("tad: warning: no effect", "tad: waiting for another process")) for line in said)
    rows, expected = (load_table(folder / "results.parquet") for folder in (out, ran[0]))
    same = ["arm", "seed", "accuracy_mean", "label_accuracy", "key"]
    assert rows[same].to_dict("records") == expected[same].to_dict("records")
    for manifest in ran[0].glob("*/*/manifest.json"):
        assert load_json(out / manifest.relative_to(ran[0]))["files"] == load_json(manifest)["files"]


# Small parts


def test_the_gap_closed_needs_the_arm_vanilla_and_the_same_arm_on_clean_labels():
    def row(arm, accuracy, seed=0, noise="pairflip", ipc=10):
        return {"arm": arm, "seed": seed, "accuracy_mean": accuracy, "noise": noise, "ipc": ipc}

    rows = [row("vanilla", 0.5), row("tad", 0.8), row("oracle", 0.6)]
    clean = [row("tad", 0.9, noise="none"), row("tad", 0.7, noise="none", ipc=1)]
    assert cli.gap_closed(rows, "tad", rows + clean) == pytest.approx(0.75)
    assert cli.gap_closed([*rows, row("vanilla", 0.1, seed=1)], "tad", clean) == pytest.approx(0.75)
    assert cli.gap_closed(rows[:1], "tad", clean) is None
    assert cli.gap_closed(rows, "tad", rows) is None
    assert cli.gap_closed(rows, "tad-posterior", clean) is None
    assert cli.gap_closed(rows, "tad", [row("tad", 0.5, noise="none")]) is None
    assert cli.gap_closed(clean, "tad", clean) is None


def test_predictors_alone_ask_for_the_arm_that_has_them(tmp_path):
    of = {"out": str(tmp_path), "device": "cpu"}
    assert [c.arm for c in cli.configurations(cli.Run(predictors=("patches",), **of))] == ["tad-posterior"]
    assert [c.arm for c in cli.configurations(cli.Run(**of))] == ["tad"]
    both = cli.Run(predictors=("patches",), arm=("vanilla", "tad-posterior", "vanilla"), **of)
    assert [c.arm for c in cli.configurations(both)] == ["vanilla", "tad-posterior"]


def test_who_cannot_tell_how_many_labels_are_wrong_says_so(tmp_path, capsys):
    few = ["--device", "cpu", "--predictors", "patches", "--noise", "symmetric", "--rate", "0.4", "--n-train"]
    for n, said in ((50, True), (1000, False)):
        for _ in range(2):  # also where the stage is finished
            assert cli.main(["divert", *few, str(n), "--out", str(tmp_path / str(n))]) == 0
            told = "tad: warning: the data cannot tell how many labels are wrong: " in capsys.readouterr().err
            assert told == said


def test_settings_are_typed_by_their_values():
    given = ("width=4", "mtt_lr_img=1e1", "norm=none", "n_train=null", "download=true", "root=a=b")
    assert cli.settings(given) == {
        "width": 4,
        "mtt_lr_img": 10.0,
        "norm": "none",
        "n_train": None,
        "download": True,
        "root": "a=b",
    }


def test_what_a_preset_leaves_out_is_said():
    whole = pipeline.Config.from_params(dataset="digits")
    assert cli.share_of_data(whole) is None
    part = cli.share_of_data(whole.with_params(n_train=200))
    assert part.startswith("200 of the 1297 training images of digits, 8 x 8 pixels (preset smoke)")
