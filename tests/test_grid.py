"""Promises of a grid's file: what it lists becomes cells with names, and every mistake is told with its line."""

from pathlib import Path

import pytest

from tadlib.errors import InputError
from tadlib.grid.load import load_grid

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
    path = tmp_path / "some.yml"
    path.write_text(text)
    return load_grid(path, **machine)


def test_cells_are_the_combinations_in_the_order_of_the_file(tmp_path):
    grid = load(tmp_path, GOOD, out="elsewhere")
    assert grid.name == "some"
    assert [cell.name for cell in grid.cells] == [
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
    config = grid.cells[3].config
    assert (config.rate, config.seed, config.arm, config.mtt.lr_lr, config.out) == (0.2, 1, "tad", 1e-5, "elsewhere")
    assert [cell.line for cell in grid.cells[-2:]] == [6, 9]


def test_cells_that_differ_in_another_setting_alone_have_it_in_their_names(tmp_path):
    grid = load(tmp_path, "blocks:\n  - evaluate_network: [convnet, alexnet]\n    width: 8\n  - seed: 1\n")
    assert [cell.name for cell in grid.cells] == [
        "digits-none-tad-mtt-ipc10-seed0-evaluate_network-convnet",
        "digits-none-tad-mtt-ipc10-seed0-evaluate_network-alexnet",
        "digits-none-tad-mtt-ipc10-seed1",
    ]


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("shared:", "shred:", "some.yml:1: unknown entry 'shred'; did you mean 'shared'?"),
        ("    rate:", "    rat:", "some.yml:7: unknown parameter 'rat'; did you mean 'rate'?"),
        ("dataset: digits", "dataset: digit", "some.yml:2: unknown data set 'digit'"),
        ("[vanilla, tad]", "\n    - vanilla\n    - tads", "some.yml:5: unknown arm 'tads'"),
        ("[0.2, 0.4]", "[0.2, 1.4]", "some.yml:7: rate must be in [0, 1), got 1.4"),
        ("seed: [0, 1]", "seed: [0, one]", "some.yml:8: seed must be int, got 'one'"),
        ("seed: [0, 1]", "seed: [0, 0]", "some.yml:8: seed has a value twice"),
        ("seed: [0, 1]", "seed: []", "some.yml:8: seed must be a list with at least one entry"),
        ("seed: [0, 1]", "seed: {a: 1}", "some.yml:8: seed must be a number, a word, true, false, null, or a list"),
        ("    ipc: 1\n", "    ipc: 1\n    noise: pairflip\n", "some.yml:11: noise stands in line 9 already"),
        ("    ipc: 1\n", "    out: here\n", "some.yml:10: out belongs to a machine, not to a grid"),
        (
            "    ipc: 1\n",
            "    method: dm\n",
            "some.yml:4: mtt_lr_lr is a setting of method mtt; the method chosen is dm",
        ),
        ("  - noise: none\n", "  - noise: pairflip\n    rate: 0.2\n    seed: 0\n", None),
        ("noise: none}", "noise: nun}", "some.yml:12: this leaves out nothing"),
        ("seed: [0, 1]", "seed: [0, 1", "some.yml:9: no valid YAML"),
    ],
)
def test_a_mistake_is_told_with_its_line_before_any_work(tmp_path, old, new, message):
    assert GOOD.count(old) == 1
    text = GOOD.replace(old, new)
    if message is None:  # a cell that is there twice
        text = text.replace("    ipc: 1\n", "")
        text = text[: text.index("without")]
        message = "some.yml:9: digits-pairflip-20-vanilla-mtt-ipc10-seed0 is a cell of the block in line 6 as well"
    with pytest.raises(InputError) as error:
        load(tmp_path, text)
    assert message in str(error.value)


def test_a_grid_without_blocks_or_without_a_file_is_refused(tmp_path):
    for text, message in (
        ("", "empty"),
        ("shared: {seed: 1}", "a grid needs blocks"),
        ("[1]", "must be NAME: VALUE"),
        ("blocks: 3", "a list"),
    ):
        with pytest.raises(InputError, match=f"some.yml:1: .*{message}"):
            load(tmp_path, text)
    with pytest.raises(InputError, match="there is no grid"):
        load_grid(tmp_path / "none.yml")


@pytest.mark.parametrize("name, count", [("smoke", 16), ("lite", 176), ("paper", 2832)])
def test_every_cell_of_the_grids_that_come_with_tadlib_is_valid_and_has_a_name_of_its_own(name, count):
    cells = load_grid(GRIDS / f"{name}.yml").cells
    assert len(cells) == len({cell.name for cell in cells}) == count
