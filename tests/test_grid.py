"""Promises of a grid's file: what it lists becomes runs with names, and every mistake is reported with its place."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nbformat
import pytest

from tadlib import pipeline
from tadlib.config import METHODS, Config
from tadlib.errors import InputError
from tadlib.nn.networks import Network, NetworkSpec
from workflow import cost, jobs
from workflow.jobs import NOTEBOOK, Job, grid_jobs, to_do
from workflow.load import load_grid

GRIDS = Path(__file__).resolve().parents[1] / "grids"

GOOD = """\
shared:
  dataset: digits
  arm: [vanilla, tad]
  mtt_lr_lr: 1e-5
blocks:
  - noise: pairflip
    rate: [0.2, 0.4]
    seed: [0, 1]
  - noise: none
    ipc: 1
without:
  - {arm: tad, noise: none}
"""


def load(tmp_path: Path, text: str, **machine):
    return load_grid(write(tmp_path, text), **machine)


def test_runs_are_the_combinations_in_the_order_of_the_file(tmp_path):
    grid = load(tmp_path, GOOD, out="elsewhere")
    assert grid.name == "some"
    assert [run.name for run in grid.runs] == [
        "digits-pairflip-20-vanilla-mtt-ipc10-seed0",
        "digits-pairflip-20-tad-mtt-ipc10-seed0",
        "digits-pairflip-20-vanilla-mtt-ipc10-seed1",
        "digits-pairflip-20-tad-mtt-ipc10-seed1",
        "digits-pairflip-40-vanilla-mtt-ipc10-seed0",
        "digits-pairflip-40-tad-mtt-ipc10-seed0",
        "digits-pairflip-40-vanilla-mtt-ipc10-seed1",
        "digits-pairflip-40-tad-mtt-ipc10-seed1",
        "digits-none-vanilla-mtt-ipc1-seed0",
    ]
    config = grid.runs[3].config
    assert (config.rate, config.seed, config.arm, config.mtt.lr_lr, config.out) == (0.2, 1, "tad", 1e-5, "elsewhere")


def test_runs_that_differ_in_another_setting_alone_have_it_in_their_names(tmp_path):
    grid = load(tmp_path, "blocks:\n  - evaluate_network: [convnet, alexnet]\n    width: 8\n  - seed: 1\n")
    assert [run.name for run in grid.runs] == [
        "digits-none-tad-mtt-ipc10-seed0-evaluate_network-convnet",
        "digits-none-tad-mtt-ipc10-seed0-evaluate_network-alexnet",
        "digits-none-tad-mtt-ipc10-seed1",
    ]


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("shared:", "shred:", "unknown entry 'shred'; expected one of: shared, blocks, without"),
        ("    rate:", "    rat:", "blocks, entry 1: unknown parameter 'rat'; did you mean 'rate'?"),
        ("dataset: digits", "dataset: digit", "blocks, entry 1: unknown data set 'digit'"),
        ("dataset: digits", "datasets: digits", "shared: unknown parameter 'datasets'; did you mean 'dataset'?"),
        ("[vanilla, tad]", "\n    - vanilla\n    - tads", "blocks, entry 1: unknown arm 'tads'"),
        ("[0.2, 0.4]", "[0.2, 1.4]", "blocks, entry 1: rate must be in [0, 1), got 1.4"),
        ("[0.2, 0.4]", "[0, 0.4]", "blocks, entry 1: rate must be above 0 for noise pairflip, got 0"),
        ("noise: none\n", "noise: asymmetric\n    rate: 0.4\n", "asymmetric noise follows a map between the classes"),
        ("seed: [0, 1]", "seed: [0, one]", "blocks, entry 1: seed must be int, got 'one'"),
        ("seed: [0, 1]", "seed: 1:30", "blocks, entry 1: seed must be int, got '1:30'"),
        ("seed: [0, 1]", "seed: [0, 0]", "blocks, entry 1: seed has a value twice"),
        ("seed: [0, 1]", "seed: []", "blocks, entry 1: seed needs at least one value"),
        ("seed: [0, 1]", "seed: {a: 1}", "blocks, entry 1: seed must be int, got {'a': 1}"),
        ("    ipc: 1\n", "    ipc: 1\n    noise: pairflip\n", 'noise is there twice in "SOME", line 11'),
        ("    ipc: 1\n", "    posterior_ema: 0\n    divert_average: 0\n", "posterior_ema is there twice"),
        ("    ipc: 1\n", "    out: here\n", "blocks, entry 2: out belongs to a machine, not to a grid"),
        ("    ipc: 1\n", "    method: dm\n", "entry 2: mtt_lr_lr is a setting of method mtt; the method chosen is dm"),
        ("  - noise: none\n", "  - noise: pairflip\n    rate: 0.2\n    seed: 0\n", None),
        ("noise: none}", "noise: nun}", "without, entry 1: no run is like that"),
        ("seed: [0, 1]", "seed: [0, 1", 'no valid YAML: while parsing a flow sequence in "SOME", line 8'),
    ],
)
def test_a_mistake_is_reported_with_its_place_before_any_work(tmp_path, old, new, message):
    assert GOOD.count(old) == 1
    text = GOOD.replace(old, new)
    if message is None:  # a run that is there twice
        text = text.replace("    ipc: 1\n", "")
        text = text[: text.index("without")]
        message = "blocks, entry 2: digits-pairflip-20-vanilla-mtt-ipc10-seed0 is a run of entry 1 already"
    with pytest.raises(InputError) as error:
        load(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path / 'some.yml'}: ")
    assert message.replace("SOME", str(tmp_path / "some.yml")) in str(error.value)


def test_files_lie_beside_the_grid(tmp_path):
    own = {"noise": "file:a.csv", "corrections": "sub/b.csv", "posterior_predictors": "patches 'embeddings:c d.npy'"}
    text = "\n".join(f'    {name}: "{value}"' for name, value in own.items())
    (run,) = load(tmp_path, f"blocks:\n  - arm: tad-posterior\n{text}\n").runs
    assert run.given["noise"] == f"file:{tmp_path}/a.csv"
    assert run.given["corrections"] == f"{tmp_path}/sub/b.csv"
    assert run.config.posterior.names == ["patches", f"embeddings:{tmp_path}/c d.npy"]
    of_a_name = "patches embeddings:torchvision:resnet18"
    (run,) = load(tmp_path, f"blocks: [{{posterior_predictors: '{of_a_name}', corrections: null}}]").runs
    assert (run.given["posterior_predictors"], run.given["corrections"]) == (of_a_name, None)
    with pytest.raises(InputError, match="entry 1: predictors cannot be read: No closing quotation in"):
        load(tmp_path, 'blocks:\n  - posterior_predictors: patches "x\n')


def test_old_names_of_settings_and_arms_are_understood(tmp_path):
    (run,) = load(tmp_path, "blocks: [{arm: clean-then-distill, divert_epochs: 7}]").runs
    assert (run.config.arm, run.config.auditor.epochs) == ("loss-filter", 7)


def test_a_grid_without_blocks_or_without_a_file_is_refused(tmp_path):
    for text, message in (
        ("", "a grid is made of"),
        ("shared: {seed: 1}", "a grid needs blocks"),
        ("shared: 1\nblocks: [{seed: 1}]", "shared: must be NAME: VALUE"),
        ("[1]", "a grid is made of"),
        ("blocks: 3", "a list"),
        ("blocks: [3]", "blocks, entry 1: must be NAME: VALUE"),
        ("blocks: \x07", "no valid YAML"),
    ):
        with pytest.raises(InputError, match=f"some.yml: .*{message}"):
            load(tmp_path, text)
    with pytest.raises(InputError, match="there is no such grid; grids beside it: some"):
        load_grid(tmp_path / "none.yml")


@pytest.mark.parametrize("name, count", [("smoke", 28), ("paper-lite", 528), ("native", 47), ("paper", 3360)])
def test_every_run_of_the_grids_that_come_with_tadlib_is_valid_and_has_a_name_of_its_own(name, count):
    runs = load_grid(GRIDS / f"{name}.yml").runs
    assert len(runs) == len({run.name for run in runs}) == count
    assert {run.config.arm for run in runs} == {"vanilla", "loss-filter", "tad", "tad-posterior", "oracle"}


def test_the_other_grids_that_come_with_tadlib_are_valid():
    assert len(load_grid(GRIDS / "rates.yml").runs) == 3 * (8 * 5 + 4)
    assert len(load_grid(GRIDS / "clean.yml").runs) == 3 + 2 * 2 * 6 + 3 * 8


# Jobs


def write(folder: Path, text: str) -> Path:
    path = folder / "some.yml"
    path.write_text(text)
    return path


MANY = """\
shared: {dataset: digits, noise: pairflip, rate: [0.2, 0.4], seed: [0, 1]}
blocks:
  - {arm: [vanilla, tad, oracle], method: [mtt, tesla], ipc: [1, 10]}
  - {arm: [vanilla, tad], method: dm}
"""


def jobs_of(tmp_path: Path, text: str = MANY, notebook: Path = NOTEBOOK) -> list[Job]:
    return grid_jobs(load_grid(write(tmp_path, text), out=str(tmp_path / "runs")), notebook)


def test_what_runs_share_is_one_job_each(tmp_path):
    jobs = jobs_of(tmp_path)
    count = Counter(job.stage for job in jobs)
    assert len({job.target for job in jobs}) == len(jobs)
    assert count == {
        "run": 2 * 2 * (3 * 2 * 2 + 2),
        "noise": 2 * 2,  # none for the oracle
        "divert": 2 * 2,  # of tad alone: other arms train nothing
        "experts": 2 * 2 * 2 + 2,  # the oracle's serve both rates; two methods and two IPC share all
    }


def test_a_job_names_all_that_defines_its_run_whatever_the_notebook_has_as_an_example(tmp_path):
    (job,) = jobs_of(tmp_path, "blocks: [{dataset: digits, arm: vanilla, preset: smoke, method: dm}]")
    defining = {"noise": "none", "rate": 0.0, "ipc": 10, "seed": 0}
    assert job.params == {"dataset": "digits", "arm": "vanilla", "preset": "smoke", "method": "dm"} | defining


def test_every_job_comes_after_what_it_needs(tmp_path):
    seen: set[str] = set()
    for job in jobs_of(tmp_path):
        assert set(job.needs) <= seen
        seen.add(job.target)


def test_runs_with_the_same_distilled_set_wait_for_the_first_of_them(tmp_path):
    jobs = [job for job in jobs_of(tmp_path) if job.stage == "run" and "oracle-mtt-ipc1-seed0" in job.run]
    first, second = jobs
    assert first.target in second.needs
    assert first.key == second.key


def targets(jobs: list[Job], stage: str) -> set[str]:
    return {job.target for job in jobs if job.stage == stage}


def test_a_run_that_joins_the_grid_leaves_the_jobs_of_others_as_they_are(tmp_path):
    before = {job.target for job in jobs_of(tmp_path)}
    after = {job.target for job in jobs_of(tmp_path, MANY + "  - {arm: oracle, method: dm}\n")}
    assert before < after


def test_a_changed_setting_renews_what_depends_on_it_and_no_more(tmp_path):
    before, after = jobs_of(tmp_path), jobs_of(tmp_path, MANY.replace("method: dm", "method: dm, evaluate_epochs: 9"))
    for stage in ("noise", "divert", "experts"):
        assert targets(before, stage) == targets(after, stage)
    assert len(targets(before, "run") & targets(after, "run")) == 2 * 2 * 3 * 2 * 2


def test_a_changed_notebook_renews_the_runs_alone_and_its_outputs_do_not_count(tmp_path):
    before, notebook = jobs_of(tmp_path), nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, tmp_path / "run.ipynb")
    assert jobs_of(tmp_path, notebook=tmp_path / "run.ipynb") == before
    notebook.cells[-1].source += "\nprint(1)"
    nbformat.write(notebook, tmp_path / "run.ipynb")
    after = jobs_of(tmp_path, notebook=tmp_path / "run.ipynb")
    assert not targets(before, "run") & targets(after, "run")
    assert {j.target for j in before if j.stage != "run"} == {j.target for j in after if j.stage != "run"}


@pytest.mark.parametrize(
    "changed, renewed", [("experts", {"experts"}), ("divert", {"divert", "experts"}), ("evaluate", set())]
)
def test_changed_code_renews_the_stages_that_use_it_and_what_follows(tmp_path, monkeypatch, changed, renewed):
    before, versions = jobs_of(tmp_path), pipeline._code_versions()
    monkeypatch.setattr(pipeline, "_code_versions", lambda: versions | {changed: "other"})
    after = jobs_of(tmp_path)
    for stage in ("noise", "divert", "experts"):
        kept = targets(before, stage) & targets(after, stage)
        assert (not kept) if stage in renewed else (kept == targets(before, stage))
    kept = {j.run for j in before if j.stage == "run"} - {
        j.run for j in after if j.stage == "run" and j.target not in targets(before, "run")
    }
    assert len(kept) == (2 * 2 * 2 if changed == "experts" else 0)  # DM needs none


def test_changed_data_renews_everything_that_is_made_of_it(tmp_path, monkeypatch):
    text = "shared: {dataset: cifar10, noise: human:worse}\nblocks: [{method: dm}]\n"
    path, labels = write(tmp_path, text), tmp_path / "CIFAR-10_human.pt"
    found = []
    for content in (b"one", b"two"):
        labels.write_bytes(content)
        pipeline._files.cache_clear()
        found.append({job.target for job in grid_jobs(load_grid(path, root=str(tmp_path)))})
    assert not found[0] & found[1]
    labels.unlink()
    pipeline._files.cache_clear()
    with pytest.raises(InputError, match="human labels missing"):
        grid_jobs(load_grid(path, root=str(tmp_path)))


def test_what_is_missing_is_done_and_what_no_run_needs_any_more_is_not(tmp_path):
    jobs, out = jobs_of(tmp_path), tmp_path / "runs"
    assert to_do(jobs, out) == jobs
    run = next(job for job in jobs if job.stage == "run")
    (out / run.target).parent.mkdir(parents=True)
    (out / run.target).touch()
    left = to_do(jobs, out)
    assert run not in left
    assert len(left) == len(jobs) - 1  # other runs share its experts
    only = jobs_of(tmp_path, "shared: {dataset: digits}\nblocks: [{arm: vanilla}]\n")
    (out / only[-1].target).parent.mkdir(parents=True)
    (out / only[-1].target).touch()
    assert to_do(only, out) == []  # nobody needs its experts now


def test_changed_figures_and_pipeline_renew_the_runs_and_comments_do_not(tmp_path, monkeypatch):
    before, module = jobs_of(tmp_path), tmp_path / "labels.py"
    kept = [path for path in jobs.SHOWN_WITH if path.name != module.name]
    monkeypatch.setattr(jobs, "SHOWN_WITH", [*kept[:2], module, *kept[2:]])
    code = (GRIDS.parent / "tadbook" / "labels.py").read_text()
    module.write_text(code + "# a comment\n")
    assert jobs_of(tmp_path) == before
    module.write_text(code + "more = 1\n")
    assert not targets(before, "run") & targets(jobs_of(tmp_path), "run")


# One job on one GPU


def test_jobs_at_the_same_time_have_gpus_of_their_own(tmp_path):
    script = "from workflow.job import one_gpu\nwith one_gpu(3) as gpu: print(gpu, flush=True); input()\nprint('end')"
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(GRIDS.parent)}
    environment["CUDA_VISIBLE_DEVICES"] = "5,2,7"

    def job() -> subprocess.Popen:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return subprocess.Popen([sys.executable, "-c", script], env=environment, text=True, **pipes)

    first = [job() for _ in range(3)]
    given = [process.stdout.readline().strip() for process in first]
    assert sorted(given) == ["2", "5", "7"]
    fourth = job()
    first[1].kill()  # however a job ends, its GPU is free
    assert fourth.stdout.readline().strip() == given[1]
    for process in (first[0], first[2], fourth):
        process.communicate("\n")
    first[1].communicate()


# What it will take


def config(**params) -> Config:
    return Config.from_params(**{"dataset": "cifar10", "preset": "lite"} | params)


def test_time_follows_what_was_measured_in_proportion_to_the_work():
    machine = cost.Machine()
    machine.note("experts", config(), 60.0, 10**9)
    assert machine.seconds("experts", config(expert_count=6)) == (pytest.approx(120.0), True)
    assert machine.seconds("experts", config(preset="smoke"))[1] is False  # by analogy
    assert machine.seconds("distill", config()) == (None, False)
    assert machine.seconds("divert", config(arm="vanilla")) == (0.0, True)
    # twice the side: four times the places of every layer
    assert cost.work("experts", config(resolution=32)) == 4 * cost.work("experts", config(resolution=16))


@pytest.mark.parametrize("method", METHODS)
def test_the_work_of_every_method_is_counted_and_that_of_its_observer_and_teacher(method):
    of = config(method=method, observer_epochs=20)
    assert (cost.work("distill", of) > 0) == (method != "random")
    assert ("observer" in pipeline.plan(of)) == (method in ("rded", "cim"))
    assert cost.work("observer", of) == 2 * cost.work("experts", config(expert_count=1, expert_epochs=10))
    if of.evaluate.teacher:
        alone = config(method=method, evaluate_teacher=False)
        assert cost.work("evaluate", of) == 2 * cost.work("evaluate", alone)


def test_runs_of_both_methods_that_select_share_an_observer_that_is_a_job(tmp_path):
    grid = load_grid(write(tmp_path, "shared: {dataset: digits, arm: tad}\nblocks: [{method: [rded, cim]}]\n"))
    stages = [job.stage for job in grid_jobs(grid)]
    assert stages == ["divert", "observer", "run", "run"]


def test_disk_is_what_a_store_of_trajectories_takes():
    whole, half = config(), config(expert_half=True)
    n_parameters = Network(NetworkSpec((3, 16, 16), 10, "convnet", 32, 3, "instance")).n_parameters
    assert cost.disk(whole) == 3 * 11 * n_parameters * 4 == 2 * cost.disk(half)
    assert cost.disk(config(method="dm")) == 0


def test_the_text_of_costs_names_machine_hours_memory_and_disk(tmp_path):
    grid = load_grid(write(tmp_path, "shared: {dataset: digits}\nblocks: [{arm: [vanilla, oracle]}]\n"))
    machine = cost.Machine()
    for run in grid.runs:
        for stage in ("experts", "distill", "evaluate"):
            machine.note(stage, run.config, 1800.0, 2 * 10**9)
    text = cost.cost_text(grid_jobs(grid), {run.name: run.config for run in grid.runs}, {"a machine": machine})
    assert "2 sets of experts to train for 2 runs: 0.00 GB of disk" in text
    assert "3.0 h, one job at a time, on a machine (2.0 GB of memory at the most)" in text
