"""Settings: every bound holds from Python and by flat name, old names are understood, nothing imports torch."""

import ast
import math
import re
import subprocess
import sys
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path

import pytest

from tadlib import config
from tadlib.config import METHODS, AuditorConfig, Config, DatmConfig, param_types, stored_params
from tadlib.errors import InputError

SECTIONS = {f.name: f.type for f in fields(Config) if isinstance(f.type, type) and is_dataclass(f.type)}
ALL = [(section, f) for section, kind in SECTIONS.items() for f in fields(kind)]
BOUNDED = [(section, f) for section, f in ALL if f.metadata]
WITHOUT_BOUNDS = {("expert", "alpha"), ("posterior", "predictors")}  # a number that may be any, and names
# a value at its bound may ask for another one beside it
TOGETHER = {("auditor", "epochs"): {"warmup": 1}, ("datm", "max_start"): {"max_start_initial": 1}}
TOGETHER[("evaluate", "recipe")] = {"optimiser": "adamw"}


def beside(bound: float, direction: int) -> float:
    """The next number; beside 0 the least one that is not denormal, for tests flush those to 0."""
    return direction * sys.float_info.min if bound == 0 else math.nextafter(bound, direction * math.inf)


def just_outside(f) -> list[tuple[object, object]]:
    """Values just outside the bounds of a field, each with the bound."""
    outside = {"least": lambda bound: bound - 1 if f.type is int else beside(bound, -1), "above": float, "below": float}
    outside |= {"most": lambda bound: beside(bound, 1), "of": lambda names: "no-such-value"}
    return [(outside[name](bound), bound) for name, bound in f.metadata.items()]


OUTSIDE = [
    pytest.param(section, f.name, value, bound, id=f"{section}_{f.name}={value}")
    for section, f in BOUNDED
    for value, bound in just_outside(f)
]


def assert_named(message: str, name: str, value: object, bound: object):
    """The message names the setting, the value, and what was expected."""
    if isinstance(bound, tuple):
        field = name if name in message else name.partition("_")[2]
        assert message == f"unknown {field} {value!r}; expected one of: {', '.join(bound)}"
        return
    expected = re.fullmatch(rf"{name} must (.*), got {re.escape(repr(value))}", message)
    assert expected, message
    said = {0: ("positive", "not be negative", "[0,", "(0,")}.get(bound, (str(bound),))
    assert any(words in expected[1] for words in said), message


def flat(section, **values) -> Config:
    """A configuration in which settings of a section are given under their flat names."""
    method = section if section in METHODS else "mtt"
    return Config.from_params(method=method, **{f"{section}_{name}": value for name, value in values.items()})


@pytest.mark.parametrize("section, name, value, bound", OUTSIDE)
def test_a_value_just_outside_a_bound_is_refused_from_python_and_under_its_flat_name(section, name, value, bound):
    for make, known_as in ((SECTIONS[section], name), (lambda **v: flat(section, **v), f"{section}_{name}")):
        with pytest.raises(InputError) as caught:
            make(**{name: value})
        assert_named(str(caught.value), known_as, value, bound)


@pytest.mark.parametrize("section, f", BOUNDED, ids=lambda v: v if isinstance(v, str) else v.name)
def test_values_at_a_closed_bound_and_just_inside_an_open_one_are_accepted(section, f):
    inside = {"least": f.type, "most": float, "above": lambda b: beside(b, 1), "below": lambda b: beside(b, -1)}
    for name, bound in f.metadata.items():
        for value in bound if name == "of" else (inside[name](bound),):
            made = SECTIONS[section](**{f.name: value} | TOGETHER.get((section, f.name), {}))
            assert getattr(made, f.name) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "1", [1], None], ids=str)
def test_what_is_no_finite_number_is_refused_from_python(value):
    for section, f in BOUNDED:
        if "of" in f.metadata or (value is None and f.type == float | None):
            continue
        with pytest.raises(InputError, match=rf"^{f.name} must .*, got {re.escape(repr(value))}$"):
            SECTIONS[section](**{f.name: value})


def test_fractions_of_whole_numbers_are_refused_from_python_and_under_their_flat_names():
    for section, f in BOUNDED:
        if f.type is int:
            with pytest.raises(InputError, match=f"{f.name} must be .*, got 2.5"):
                SECTIONS[section](**{f.name: 2.5} | TOGETHER.get((section, f.name), {}))
            with pytest.raises(InputError, match=f"{section}_{f.name} must be int, got 2.5"):
                flat(section, **{f.name: 2.5})


@pytest.mark.parametrize("section", [section for section, f in ALL if f.name == "augmentation"])
def test_an_unknown_augmentation_is_refused_in_every_part(section):
    for make in (SECTIONS[section], lambda **values: flat(section, **values)):
        with pytest.raises(InputError, match="unknown augmentation 'flop'"):
            make(augmentation="crop_flop")


def test_every_number_and_every_choice_has_bounds():
    numbers = {(s, f.name) for s, f in ALL if f.type is not bool and f.name != "augmentation"}
    assert numbers - {(s, f.name) for s, f in BOUNDED} == WITHOUT_BOUNDS


def test_every_part_of_the_settings_belongs_to_a_run():
    parts = {c for c in vars(config).values() if isinstance(c, type) and issubclass(c, config.Settings)}
    bases = {config.Settings, config.Training, config.Scheduled, config.Refining, config.Drawing, config.Learning}
    bases |= {config.Selecting}
    assert parts - bases - {config.Config} == set(SECTIONS.values())
    assert {name: SECTIONS[name] for name in METHODS} == METHODS
    for _, f in ALL:
        assert f.default is not MISSING, f.name


def test_a_subclass_changes_defaults_but_neither_types_nor_bounds():
    inherited = {f.name: f for f in fields(config.MttConfig)}
    own = {f.name: f for f in fields(config.TeslaConfig)}
    assert inherited.keys() == own.keys()
    assert all((f.type, f.metadata) == (own[name].type, own[name].metadata) for name, f in inherited.items())
    assert {name for name, f in own.items() if f.default != inherited[name].default} == {"iterations", "gradient"}
    with pytest.raises(KeyError, match="iteration"):
        type("Misspelt", (config.MttConfig,), {}, iteration=1)


def test_every_setting_has_its_meaning_under_it():
    tree = ast.parse(Path(config.__file__).read_text())
    for part in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for statement, after in zip(part.body, [*part.body[1:], None]):
            if not isinstance(statement, ast.AnnAssign) or "ClassVar" in ast.unparse(statement.annotation):
                continue
            if part.name == "Config" and ast.unparse(statement.target) in SECTIONS:
                continue
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            assert documented, f"{part.name}.{ast.unparse(statement.target)}"
            assert after.value.value.rstrip().endswith(".")


def test_importing_settings_does_not_import_torch():
    code = "import sys, tadlib.config; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


# config.Settings that depend on each other


def test_warm_up_is_no_longer_than_the_training():
    assert AuditorConfig(epochs=3, warmup=3).warmup == 3
    for make, name in ((AuditorConfig, "warmup"), (lambda **v: flat("auditor", **v), "auditor_warmup")):
        with pytest.raises(InputError, match=rf"^{name} must be in \[1, epochs=3\], got 4$"):
            make(epochs=3, warmup=4)
    with pytest.raises(InputError, match=r"^warmup must be in \[1, epochs=3\], got 5$"):
        replace(AuditorConfig(), epochs=3)
    # a preset's gives way to the epochs that are asked for, and one that is given does not
    assert [Config.from_params(auditor_epochs=n).auditor.warmup for n in (1, 3, 6, 20)] == [1, 3, 6, 6]
    with pytest.raises(InputError, match="auditor_epochs must be at least 1, got 0"):
        Config.from_params(auditor_epochs=0)


@pytest.mark.parametrize("window", [(5, 5, 20), (6, 5, 20), (0, 21, 20)])
def test_the_window_of_start_epochs_only_grows(window):
    values = dict(zip(("min_start", "max_start_initial", "max_start"), window))
    message = r"must satisfy 0 <= min_start < max_start_initial <= max_start, got " + ", ".join(map(str, window))
    for make in (DatmConfig, lambda **values: flat("datm", **values)):
        with pytest.raises(InputError, match=message):
            make(**values)


@pytest.mark.parametrize("method", [name for name, kind in METHODS.items() if kind.needs_experts])
def test_experts_are_trained_as_long_as_they_are_read(method):
    ok = Config.from_params(method=method)
    last = ok.method_config.last_epoch
    assert ok.with_params(expert_epochs=last).expert.epochs == last
    with pytest.raises(InputError, match=f"must be trained for {method}_.* = {last} .* got expert_epochs {last - 1}"):
        ok.with_params(expert_epochs=last - 1)


def test_experts_that_judge_labels_take_plain_steps_and_need_a_method_with_experts():
    with pytest.raises(InputError, match="loops 'per-expert' needs experts, which method dm does not have"):
        Config.from_params(loops="per-expert", method="dm")
    for arm in config.OWN_LOOPS:
        assert Config.from_params(loops="per-expert", arm=arm).own_loops
        for name, value in {"rho": 0.1, "compile": True, "bfloat16": True}.items():
            with pytest.raises(InputError, match=f"expert_{name} is not for experts that judge labels"):
                Config.from_params(loops="per-expert", arm=arm, **{f"expert_{name}": value})
    assert not Config.from_params(loops="per-expert", arm="vanilla", expert_rho=0.1).own_loops


def test_one_part_leaves_its_learning_rate_to_the_distilled_set():
    assert config.Protocol().lr is None
    assert Config.from_params(evaluate_lr=None).evaluate.lr is None
    with pytest.raises(InputError, match="^evaluate_lr must be positive, got 0.0$"):
        Config.from_params(evaluate_lr=0)


# Names


def test_an_unknown_arm_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match="^unknown arm 'tda'; expected one of: " + ", ".join(config.ARMS)):
        Config.from_params(arm="tda")


def test_the_variables_of_a_notebook_are_its_parameters():
    variables = {"rate": 0.4, "noise": "pairflip", "n_train": 200, "root": None, "In": [], "_": "", "ast": ast, "K": 3}
    made = Config.from_variables(variables)
    assert (made.rate, made.noise, made.n_train) == (0.4, "pairflip", 200)
    with pytest.raises(InputError, match="unknown parameter 'raet'; did you mean 'rate'"):
        Config.from_variables(variables | {"raet": 0.1})
    with pytest.raises(InputError, match="arm has no effect in this notebook"):
        Config.from_variables(variables | {"arm": "tad"}, fixed=("arm",))


@pytest.mark.parametrize(
    "name, near", [("auditor_epoch", "auditor_epochs"), ("tad_alhpa", "tad_alpha"), ("posterior_ena", "posterior_ema")]
)
def test_a_misspelt_setting_is_answered_with_the_nearest_one(name, near):
    with pytest.raises(InputError, match=f"^unknown parameter '{name}'; did you mean '{near}'\\?$"):
        Config.from_params(**{name: 1})


@pytest.mark.parametrize("gone", ["divert_evidence", "divert_views", "divert_power", "divert_auditors", "divert_begin"])
def test_settings_that_are_gone_are_unknown(gone):
    with pytest.raises(InputError, match=f"unknown parameter '{gone}'"):
        Config.from_params(**{gone: 1})


def test_every_arm_takes_the_settings_of_all_trust_methods():
    for arm in config.ARMS:
        made = Config.from_params(arm=arm, auditor_epochs=7, auditor_warmup=2, tad_alpha=0.1, posterior_error=0.2)
        assert (made.auditor.epochs, made.tad.alpha, made.posterior.error) == (7, 0.1, 0.2)
    assert Config.from_params(tad_class_wise=False).tad == config.TadConfig(class_wise=False)


@pytest.mark.parametrize("old, new", config.OLD_NAMES.items())
def test_old_names_of_settings_are_accepted(old, new):
    assert old not in param_types()
    value = {int: 15, float: 0.25, bool: False, str: "flip"}[param_types()[new]]
    made = Config.from_params(**{old: value})
    assert made == Config.from_params(**{new: value}) != Config.from_params()
    assert made.to_params().keys() & {old, new} == {new}


def test_errors_of_old_names_name_the_new_ones():
    with pytest.raises(InputError, match="^auditor_batch must be at least 1, got 0$"):
        Config.from_params(divert_batch=0)


@pytest.mark.parametrize("old, new", config.OLD_ARMS.items())
def test_old_names_of_arms_are_accepted(old, new):
    assert new in config.ARMS
    assert Config.from_params(arm=old).arm == new


# Files of other versions


OLD_FILE = {"arm": "tad", "dataset": "digits", "mtt_iterations": 12}
OLD_FILE |= {"divert_epochs": 9, "divert_warmup": 4, "divert_average": 0.9}
OLD_FILE |= {"divert_views": "network+patches", "divert_power": 2.0}  # gone


def test_arm_tad_of_an_old_file_is_the_trust_posterior():
    found = stored_params(OLD_FILE)
    trust = {"auditor_epochs": 9, "auditor_warmup": 4, "posterior_ema": 0.9}
    assert found == {"arm": "tad-posterior", "dataset": "digits", "mtt_iterations": 12} | trust
    made = Config.from_params(**found)
    assert (made.arm, made.auditor.epochs, made.posterior.ema) == ("tad-posterior", 9, 0.9)


@pytest.mark.parametrize("arm", ["vanilla", "co-teaching", "confident-learning", "gce", "oracle", "clean-then-distill"])
def test_other_arms_of_an_old_file_keep_their_names_but_for_the_loss_filter(arm):
    assert stored_params(OLD_FILE | {"arm": arm})["arm"] == config.OLD_ARMS.get(arm, arm)


@pytest.mark.parametrize("arm", config.ARMS)
@pytest.mark.parametrize("method", ["mtt", "dm"])
def test_a_file_of_this_version_stays_as_it_is(arm, method):
    params = Config.from_params(arm=arm, method=method, auditor_lr=0.5).to_params()
    assert stored_params(params) == params
    assert stored_params(stored_params(OLD_FILE)) == stored_params(OLD_FILE)


def test_an_old_and_a_new_name_of_one_setting_are_refused_together():
    with pytest.raises(InputError, match="divert_epochs is the old name of auditor_epochs: give one of them"):
        Config.from_params(divert_epochs=9, auditor_epochs=8)
