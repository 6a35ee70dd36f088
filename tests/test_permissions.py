"""What may not be read or written is one line that names it. Root may do all, so commands give up that right first."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

COMMANDS = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from tadlib import cli
answers = []
for args in json.load(sys.stdin):
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as err:
        status = cli.main(args)
    answers.append([status, err.getvalue()])
print(json.dumps(answers))
"""
TINY = "--n-train 200 --n-test 50 --ipc 1 --device cpu --method random --arm vanilla --noise pairflip --rate 0.3"
TINY += " --set width=4 evaluate_networks=2 evaluate_epochs=2"


def tad(*commands: list[object]) -> list[list]:
    """Status and stderr of every command, carried out one after the other by one who has to obey modes."""
    obey: list[str] = []
    if os.getuid() == 0:
        obey = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
        if not shutil.which("setpriv") or subprocess.run([*obey, "true"], capture_output=True).returncode:
            pytest.skip("root cannot give up its right to all files here")
    given = json.dumps([list(map(str, command)) for command in commands])
    done = subprocess.run([*obey, sys.executable, "-c", COMMANDS], input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def closed(tmp_path):
    """Make paths inaccessible until the test ends."""
    paths: list[Path] = []

    def close(path: Path, mode: int = 0) -> Path:
        paths.append(path)
        path.chmod(mode)
        return path

    yield close
    for path in reversed(paths):
        path.chmod(0o755)


def test_what_may_not_be_read_is_named(tmp_path, closed):
    dark, out = tmp_path / "dark", tmp_path / "out"
    dark.mkdir()
    for k in "ab":
        for i in range(6):
            file = tmp_path / "images" / k / "more" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 20 * i + 9 * (k == "a")).save(file)
    files = [tmp_path / f"secret{suffix}" for suffix in (".csv", ".npy", ".parquet", ".safetensors")]
    for path in files:
        path.touch()
        closed(path)
    closed(dark)
    closed(tmp_path / "images" / "b" / "more")  # must not be passed over as if it were empty
    csv, npy, parquet, tensors = files
    commands: dict[Path, list[list[object]]] = {
        path: [["--arm", "vanilla", "--noise", f"file:{path}"]] for path in files
    }
    commands[csv] += [["--corrections", csv], ["--dataset", f"table:{csv}"]]
    commands[parquet] += [["--corrections", parquet], ["--dataset", f"table:{parquet}"]]
    for path in (npy, parquet, tensors):
        commands[path] += [
            ["--arm", "tad-posterior", "--predictors", f"{kind}:{path}"] for kind in ("embeddings", "probabilities")
        ]
    commands[dark] = [["--dataset", name, "--root", dark] for name in ("cifar10", "tiny-imagenet", "fashion-mnist")]
    commands[dark] += [["--dataset", f"folder:{dark}"], ["--dataset", f"table:{dark}/x.csv"]]
    commands[dark] += [["--noise", f"file:{dark}/x.csv"], ["--root", dark / "below"]]
    commands[tmp_path / "images" / "b" / "more"] = [["--dataset", f"folder:{tmp_path}/images"]]
    asked = [(path, ["divert", *args, "--device", "cpu", "--out", out]) for path, of in commands.items() for args in of]
    asked += [(dark, [command, dark / "x"]) for command in ("info", "evaluate", "export")]
    for (path, args), (status, said) in zip(asked, tad(*(args for _, args in asked))):
        assert status == 2, (args, said)
        assert said.startswith("tad: error: "), (args, said)
        assert len(said.splitlines()) == 1, (args, said)
        assert str(path) in said, (args, said)
        assert "ermission denied" in said, (args, said)


def test_what_may_not_be_written_is_named_and_finished_folders_may_be_read_only(tmp_path, closed):
    (tmp_path / "shut").mkdir()
    (tmp_path / "data").mkdir()
    closed(tmp_path / "data", 0o555)
    args, out = TINY.split(), tmp_path / "runs"
    once = ["run", *args, "--root", tmp_path / "data", "--out", out]
    done = ["divert", *args, "--out", out]
    assert [status for status, _ in tad(once, done)] == [0, 0]  # a data root may be read-only
    (distilled,) = (out / "distill").iterdir()
    for path in [*out.rglob("*"), out]:
        if path.is_dir():
            closed(path, 0o555)
    reading = [["distill", *args, "--out", out], ["evaluate", *args, "--out", out], ["info", distilled]]
    reading += [["evaluate", distilled, "--device", "cpu"], once, done]
    for command, (status, said) in zip(reading, tad(*reading)):
        assert status == 0, (command, said)
    closed(tmp_path / "shut", 0o555)
    for where in (tmp_path / "shut" / "new", out):
        commands: list[list[object]] = [
            [c, *args, "--out", where, "--seed", 9] for c in ("run", "divert", "distill", "evaluate")
        ]
        commands += [["audit", "--n-train", 200, "--device", "cpu", "--out", where]]
        commands += [["export", distilled, "--out", where]]
        for command, (status, said) in zip(commands, tad(*commands)):
            assert status in (1, 2), (command, said)
            errors = [line for line in said.splitlines() if "error" in line]
            assert len(errors) == 1, (command, said)
            assert "Traceback" not in said, (command, said)
            assert str(where) in errors[0], (command, said)
            assert "ermission denied" in errors[0], (command, said)
