"""Presets: published settings are those of the tables, and every preset makes a valid configuration."""

from dataclasses import replace

import pytest

from tadlib import presets
from tadlib.config import METHODS, Config, known_param
from tadlib.errors import InputError
from tadlib.evaluate import PROTOCOLS

EVERY = [(d, i) for d in ("cifar10", "cifar100", "tiny-imagenet") for i in (1, 10, 50)]


@pytest.mark.parametrize("preset", ["smoke", "lite", "native"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dataset", ["digits", "fashion-mnist", "cifar10"])
def test_small_presets_make_a_configuration(preset, method, dataset):
    config = Config.from_params(preset=preset, method=method, dataset=dataset)
    assert not config.zca
    if dataset != "cifar10" and method not in ("random", "rded"):
        assert "color" not in config.method_config.augmentation
        assert "flip" not in config.method_config.augmentation


def published(method: str) -> set[tuple[str, int]]:
    """Data set and images per class of everything published for a method, among those tested here."""
    rows = presets.published(method)
    return {(d, i) for d, i in EVERY for row in rows if d == row["dataset"] and i == row.get("ipc", i)}


# method, data set, images per class -> settings as published
PUBLISHED = [
    ("mtt", "cifar10", 1, {"syn_steps": 50, "max_start": 2, "lr_img": 100, "lr_lr": 1e-7, "zca": True}),
    ("mtt", "cifar10", 50, {"lr_teacher": 0.001, "lr_img": 1000, "max_start": 40, "zca": False}),
    ("mtt", "cifar100", 50, {"syn_steps": 80, "batch_syn": 125, "zca": True, "iterations": 5000}),
    ("mtt", "tiny-imagenet", 10, {"batch_syn": 200, "lr_img": 1e4, "lr_lr": 1e-4, "depth": 4, "zca": False}),
    ("tesla", "cifar10", 10, {"iterations": 10000, "gradient": "tesla", "syn_steps": 30, "evaluate_networks": 3}),
    ("tesla", "cifar10", 1, {"max_start": 5, "lr_img": 500}),
    ("ftd", "cifar10", 1, {"ema": 0.9999, "expert_rho": 0.01, "expert_alpha": 0.3, "iterations": 5000}),
    ("ftd", "cifar100", 1, {"syn_steps": 40, "expert_epochs": 3, "expert_alpha": 1.0, "ema": 0.9995}),
    ("ftd", "tiny-imagenet", 10, {"batch_syn": 500, "ema": 0.999, "depth": 4}),
    ("datm", "cifar10", 1, {"batch_syn": 10, "threshold": 1.1, "lr_y": 5, "max_start": 4, "min_start": 0}),
    ("datm", "cifar10", 10, {"max_start_initial": 10, "max_start": 20, "expansion_end": 1000, "lr_y": 2}),
    ("datm", "cifar100", 50, {"init": "real", "min_start": 20, "max_start": 70, "zca": True, "lr_y": 10}),
    ("datm", "tiny-imagenet", 50, {"syn_steps": 20, "lr_img": 100, "min_start": 40, "max_start": 70}),
    ("datm", "cifar10", 50, {"momentum_y": 0.9, "momentum": 0.5, "iterations": 10000, "evaluate_batch": 128}),
    ("dsa", "cifar10", 50, {"outer_steps": 50, "inner_epochs": 10, "lr_img": 0.1, "iterations": 1000}),
    ("dsa", "cifar100", 1, {"outer_steps": 1, "inner_epochs": 1, "lr_net": 0.01, "batch_real": 256}),
    ("dm", "tiny-imagenet", 10, {"iterations": 20000, "lr_img": 1, "momentum": 0.5, "depth": 4, "lr_net": 0.01}),
    ("dance", "cifar10", 10, {"iterations": 10000, "lr_img": 1.6, "batch_real": 128, "momentum": 0.5, "formation": 2}),
    ("dance", "cifar100", 50, {"lr_img": 8, "expert_schedule": "steps", "expert_cutmix": 0.5, "expert_momentum": 0.9}),
    ("ncfm", "cifar10", 10, {"iterations": 20000, "batch_real": 1024, "frequencies": 4096, "formation": 2}),
    ("ncfm", "cifar10", 1, {"evaluate_epochs": 2000, "evaluate_lr": 6e-4, "evaluate_weight_decay": 0.01}),
    ("ncfm", "tiny-imagenet", 50, {"batch_real": 128, "evaluate_epochs": 40, "evaluate_optimiser": "adamw"}),
]


@pytest.mark.parametrize("method, dataset, ipc, expected", PUBLISHED)
def test_published_settings_are_those_of_the_tables(method, dataset, ipc, expected):
    classes = METHODS[method]
    values = presets.settings("paper", dataset, ipc, method)
    for name, value in expected.items():
        found = values.get(f"{method}_{name}", values.get(name, getattr(classes, name, None)))
        assert found == value, name


@pytest.mark.parametrize("method", METHODS)
def test_experts_are_trained_as_long_as_they_are_read(method):
    for dataset, ipc in EVERY:
        if dataset != "tiny-imagenet" and (dataset, ipc) in published(method):
            config = Config.from_params(preset="paper", dataset=dataset, ipc=ipc, method=method)
            assert (config.width, config.depth) == (128, 3)
            expected = {"dance": PROTOCOLS["dance"], "ncfm": PROTOCOLS["ncfm"]}.get(method)
            if method == "ncfm":  # whose code has settings of its own for each number of images per class
                own = {name: getattr(config.evaluate, name) for name in ("epochs", "batch", "lr", "weight_decay")}
                expected = replace(expected, **own)
            if not config.needs_observer:
                assert config.evaluate == (
                    expected or replace(config.evaluate, epochs=1001, schedule="half", cutmix=0.0)
                )
            if METHODS[method].needs_experts:
                assert config.expert.epochs == config.method_config.last_epoch
                bank = (20, 0.01, 64) if expected else (100, 0.01, 256)
                assert (config.expert.count, config.expert.lr, config.expert.batch) == bank


def test_dance_and_ncfm_share_their_bank_and_at_small_scales_the_experts_of_mtt():
    def experts(method, **scale):
        return Config.from_params(method=method, dataset="cifar10", **scale).expert

    assert experts("dance", preset="paper") == experts("ncfm", preset="paper")
    for preset in ("smoke", "lite"):
        assert experts("dance", preset=preset) == experts("ncfm", preset=preset) == experts("mtt", preset=preset)


def test_tables_hold_everything_published():
    assert published("mtt") == published("datm") == published("dance") == published("ncfm") == set(EVERY)
    assert published("ftd") == set(EVERY) - {("tiny-imagenet", 50)}
    assert published("tesla") == {(dataset, ipc) for dataset, ipc in EVERY if dataset != "tiny-imagenet"}
    with pytest.raises(InputError, match="published settings of tesla for cifar10 ipc 1, .*; got tiny-imagenet ipc 1"):
        presets.settings("paper", "tiny-imagenet", 1, "tesla")


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "tiny-imagenet"])
def test_native_is_lite_with_all_images_at_their_own_size_and_a_wider_network(dataset):
    lite, native = (presets.settings(preset, dataset, 10, "dm") for preset in ("lite", "native"))
    assert not {"n_train", "n_test", "resolution"} & native.keys()
    assert {name for name in lite if lite[name] != native.get(name)} <= {"n_train", "resolution", "width", "depth"}
    assert (native["width"], native["depth"]) == (64, 4 if dataset == "tiny-imagenet" else 3)


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_every_name_in_the_tables_is_a_setting(preset):
    for table, values in presets.TABLES[preset].items():
        method = table.partition("-ipc-")[0]
        columns = values.get("published", [[]])[0]
        for name in {*values, *columns} - {"published", "dataset", "ipc"}:
            for owner in presets.GROUPS.get(table, (method,)):
                known_param(owner + name if name.startswith("_") else name)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_published_protocol_is_had_by_its_name_whatever_the_method(name):
    config = Config.from_params(dataset="cifar10", method="dm", evaluate_protocol=name)
    assert config.evaluate == PROTOCOLS[name]
    changed = config.with_params(evaluate_epochs=7)
    assert changed.evaluate == replace(PROTOCOLS[name], epochs=7)
    assert changed.with_params(evaluate_protocol="dance").evaluate == PROTOCOLS["dance"]
    given = Config.from_params(dataset="cifar10", method="dm", evaluate_protocol=name, evaluate_controls=True)
    assert given.evaluate == replace(PROTOCOLS[name], controls=True)


def test_a_protocol_is_spelled_out_in_what_is_kept_and_an_unknown_one_is_refused():
    plain = Config.from_params(method="mtt", preset="smoke")
    assert "evaluate_protocol" not in plain.portable()
    named = Config.from_params(method="mtt", preset="smoke", evaluate_protocol="ncfm").portable()
    assert Config.from_params(**named).evaluate.optimiser == "adamw"
    with pytest.raises(InputError, match="unknown evaluate_protocol 'ncmf'; expected one of: mtt, datm, dm, dance"):
        Config.from_params(evaluate_protocol="ncmf")


def test_protocols_keep_the_augmentation_of_grey_images():
    assert Config.from_params(dataset="digits", evaluate_protocol="dance").evaluate.augmentation == presets.GREY
