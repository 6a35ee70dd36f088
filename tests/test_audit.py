"""An audit finds what is suspicious, tells it safely, and takes back what a person checked."""

import json
import re
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
import torch
from PIL import Image
from test_pages import AXE, CONTENT, DESKTOP, GROUND, PHONE, RULES, open_page, tab  # noqa: F401 (tab is a fixture)

from tadlib import audit, cli, pipeline
from tadlib.config import Config
from tadlib.data import load_dataset
from tadlib.errors import InputError
from tadlib.noise import NoisyLabels, corrected, corrections_checksum
from tadlib.noise.corrections import read_corrections

NASTY = ("<script>alert(1)</script>", "a\"b'&c", "{{ 7 * 7 }}")
TINY = ["--preset", "smoke", "--device", "cpu", "--set", "auditor_epochs=3", "auditor_warmup=2", "width=4"]


def findings(**changed) -> audit.Findings:
    """Five images of three classes with nasty names; the labels of images 3 and 1 are judged wrong."""
    q = [[0.9, 0.1, 0], [0.3, 0.1, 0.6], [0, 0, 1], [0.8, 0.15, 0.05], [0.2, 0.7, 0.1]]
    q = torch.tensor(q, dtype=torch.float64)
    noisy = torch.tensor([0, 0, 2, 1, 1])
    made = audit.Findings(
        class_names=NASTY,
        places=tuple(f"<img src=x onerror=alert({i})>.png" for i in range(5)),
        noisy=noisy,
        trust=q.gather(1, noisy[:, None])[:, 0],
        flagged=torch.tensor([False, True, False, True, False]),
        q=q,
        noise_rate=(0.4, 0.2, 0.6),
        checked=torch.zeros(5, dtype=torch.bool),
    )
    return replace(made, **changed)


def rendered(of: audit.Findings, **about) -> str:
    picture = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="
    note = "same pixels as <b>x</b>.png"
    suspects = [{"i": i, "place": of.places[i], "note": note, "examples": {0: 0, 2: 2}} for i in of.suspects.tolist()]
    default = {"config": Config(dataset=f"folder:/{NASTY[0]}"), "by": "path", "shape": "8 × 8", "suspects": suspects}
    default |= {
        "groups": [{"exact": True, "images": [0, 1]}],
        "n_groups": 1,
        "in_group": 6,
        "folder": Path("/<i>a</i>"),
    }
    default |= {"unreadable": ((NASTY[0], NASTY[1]),), "picture": lambda i: picture, "changed": None}
    default |= {"stage": NASTY[1], "corrections": f"--corrections {NASTY[0]}"}
    return audit.render(of, **(default | about))


class Tags(HTMLParser):
    """Names of elements, and of their attributes, in a page."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Digits as a folder of PNG files: thirty of each class, of which every tenth lies in the next one's folder; one
    image that two folders hold, and one file that is no image."""
    path = tmp_path_factory.mktemp("own") / "my digits ü"
    data = load_dataset("digits", n_train=300)
    for i, (pixels, label) in enumerate(zip(data.pixels(data.x_train), data.y_train.tolist())):
        place = path / f"digit {label if i % 10 else (label + 1) % 10}" / f"{i:04d} & co.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels[0] * 255).byte().numpy()).resize((16, 16)).save(place)
    (path / "digit 3" / "copy.png").write_bytes(sorted((path / "digit 8").iterdir())[5].read_bytes())
    (path / "digit 0" / "broken.png").write_bytes(b"no image")
    return path


@pytest.fixture(scope="module")
def audited(folder, tmp_path_factory) -> tuple[list[str], Path, dict]:
    """The command that audited the folder, its output folder and what it returned."""
    out = tmp_path_factory.mktemp("audit") / "out"
    command = ["audit", "--dataset", f"folder:{folder}", "--out", str(out), *TINY]
    assert cli.main(command) == 0
    return command, out, {"images": 301}


# What the report says


def test_names_of_classes_and_files_cannot_inject_anything():
    plain, nasty = rendered(findings(class_names=("a", "b", "c"), places=tuple("vwxyz"))), rendered(findings())
    assert "49" not in re.findall(r">\s*(\d+)\s*<", nasty)  # {{ 7 * 7 }} is a name, not a template
    assert Tags(nasty).elements == Tags(plain).elements
    assert Tags(nasty).attributes == Tags(plain).attributes
    assert not {"script", "i", "b"} & Tags(nasty).elements
    assert "onerror" not in Tags(nasty).attributes


def test_the_report_needs_no_network_and_no_script():
    text = rendered(findings())
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", text)
    assert "url(" not in text
    assert "default-src 'none'" in text


def test_suspects_are_the_flagged_labels_with_the_least_trusted_first(monkeypatch):
    monkeypatch.setattr(audit, "LEAST", 1)
    f = findings()
    assert f.suspects.tolist() == [3, 1]
    assert f.suggested[f.suspects].tolist() == [0, 2]
    assert f.probability[f.suspects].tolist() == [0.8, 0.6]
    table = audit.table(f, "path", audit.reasons(f, [""] * 5))
    assert list(table) == ["path", "label", "trust", "flagged", "suggested", "probability", "why", "checked"]
    assert table["trust"].is_monotonic_increasing
    assert table["flagged"].sum() == 2
    assert table["why"].tolist()[0] == f"probably {NASTY[0]}"


def test_a_flagged_label_is_never_suggested_itself():
    f = findings(flagged=torch.tensor([True] * 5))
    assert (f.suggested != f.noisy).all()


def test_where_few_labels_are_flagged_the_least_trusted_are_shown_and_checked_ones_never():
    checked = torch.tensor([False, False, True, False, True])
    f = findings(flagged=torch.zeros(5, dtype=torch.bool), checked=checked)
    assert f.suspects.tolist() == [3, 1, 0]
    assert f.precision is None
    assert "No label is judged wrong" in rendered(f)


def test_precision_and_recall_are_expectations_under_trust():
    f = findings()
    wrong = [1 - t for t in f.trust.tolist()]
    assert f.precision == pytest.approx((wrong[1] + wrong[3]) / 2)
    assert f.recall == pytest.approx((wrong[1] + wrong[3]) / (0.4 * 5))


def test_confusions_and_classes_are_expected_numbers():
    f = findings(q=findings().q.repeat(10, 1), noisy=findings().noisy.repeat(10), trust=findings().trust.repeat(10))
    f = replace(f, places=f.places * 10, flagged=f.flagged.repeat(10), checked=f.checked.repeat(10))
    first = audit.confusions(f)[0]
    expected = sum(q[0] for q, k in zip(f.q.tolist(), f.noisy.tolist()) if k == 1)
    assert (first["true"], first["noisy"]) == (NASTY[0], NASTY[1])
    assert first["expected"] == pytest.approx(expected)
    assert first["share"] == pytest.approx(expected / f.q[:, 0].sum().item())
    assert audit.shares(f).sum(1).tolist() == pytest.approx([1, 1, 1])
    row = audit.per_class(f)[1]
    assert row["count"] == 20
    assert row["flagged"] == 10
    assert row["other"] == NASTY[0]
    assert row["wrong"] == pytest.approx(10 * (0.85 + 0.3))
    assert row["true"] == pytest.approx(f.q[:, 1].sum().item())


@pytest.mark.parametrize(
    "fraction, text",
    [(None, "–"), (0, "0 %"), (1e-6, "< 0.1 %"), (0.034, "3.4 %"), (0.5, "50 %"), (0.9964, "99.6 %"), (1.0, "100 %")],
)
def test_fractions_are_told_so_that_nothing_looks_certain_that_is_not(fraction, text):
    assert audit.percent(fraction).replace("\xa0", " ") == text


def test_duplicates_with_different_labels_are_found_and_those_with_one_label_are_not():
    x = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    x[1] = x[0]
    x[3] = x[2]
    x[5] = 0.9 * x[4] + 0.01
    label = torch.tensor([0, 1, 2, 2, 0, 1])
    assert audit.identical(x, label) == [[0, 1]]
    assert sorted(audit.nearly_identical(x, label)) == [[0, 1], [4, 5]]


def test_thousands_of_copies_of_one_image_take_no_longer_than_as_many_others():
    n = 4000
    label = torch.zeros(n, dtype=torch.long)
    label[-1] = 1
    x = torch.rand(1, 1, 4, 4).expand(n, 1, 4, 4).contiguous()
    started = time.monotonic()
    same, alike = audit.duplicates(x, label)
    f = findings(noisy=label, places=tuple(map(str, range(n))))
    told = audit.contradictions(f, same, alike)
    assert time.monotonic() - started < 20
    assert (same, alike) == ([list(range(n))], [])
    assert told[0] == told[1] == f"same pixels as {n - 1}, which is labelled {NASTY[1]}"
    assert told[-1] == f"same pixels as 0, which is labelled {NASTY[0]}"


def test_nearest_trusted_examples_are_trusted_images_of_the_noisy_and_the_suggested_class():
    data = load_dataset("digits", n_train=100)
    q = torch.rand(100, 10, generator=torch.Generator().manual_seed(0)).double().softmax(1)
    trust = q.gather(1, data.y_train[:, None])[:, 0]
    about = {"noisy": data.y_train, "q": q, "trust": trust, "flagged": trust < trust.median(), "places": ("",) * 100}
    f = findings(class_names=data.class_names, checked=torch.zeros(100, dtype=torch.bool), **about)
    for suspect, nearest in zip(f.suspects.tolist(), audit.nearest_trusted(data.x_train, f, 0)):
        assert set(nearest) <= {int(f.noisy[suspect]), int(f.suggested[suspect])}
        for k, example in nearest.items():
            own = [i for i in range(100) if f.noisy[i] == k and not f.flagged[i]]
            assert example in own
            assert sum(f.trust[i] > f.trust[example] for i in own) <= len(own) / 2


# Label Studio


def test_tasks_have_the_form_that_label_studio_documents(audited):
    """Guide, Import pre-annotated data: a list of tasks with ``data`` and ``predictions``; results whose names are
    those of the labelling interface, with different ids, type choices, and its choices as values."""
    _, out, _ = audited
    tasks = json.loads((out / "labelstudio.json").read_text())
    view = ET.parse(out / "labelstudio.xml").getroot()
    (control,), (shown,) = view.findall("Choices"), view.findall("Image")
    choices = [choice.get("value") for choice in control]
    assert control.get("toName") == shown.get("name")
    ids = []
    for task in tasks:
        assert task.keys() == {"data", "predictions"}
        assert shown.get("value") == "$image"
        assert isinstance(task["data"]["image"], str)
        (prediction,) = task["predictions"]
        assert isinstance(prediction["model_version"], str)
        assert 0 <= prediction["score"] <= 1
        (result,) = prediction["result"]
        assert result.keys() == {"id", "from_name", "to_name", "type", "value"}
        assert (result["from_name"], result["to_name"]) == (control.get("name"), shown.get("name"))
        assert result["type"] == "choices"
        assert len(result["value"]["choices"]) == 1
        assert set(result["value"]["choices"]) <= set(choices)
        ids.append(result["id"])
    assert len(set(ids)) == len(tasks) >= audit.LEAST


def test_label_studio_finds_files_below_the_folder_above_them(audited, folder):
    for task in json.loads((audited[1] / "labelstudio.json").read_text()):
        address, place = task["data"]["image"].split("?d=")
        assert address == "/data/local-files/"
        assert (folder.parent / unquote(place)).is_file()


def test_an_interface_with_nasty_names_is_xml():
    view = ET.fromstring(audit.interface(NASTY))
    assert [choice.get("value") for choice in view.iter("Choice")] == list(NASTY)


# From a folder to a report, and back


def test_an_audit_of_a_folder_lists_every_image_and_shows_what_is_odd(audited):
    _, out, expected = audited
    table = pd.read_csv(out / "suspects.csv", dtype=str, keep_default_na=False)
    assert len(table) == expected["images"]  # none is held out for tests
    assert table["path"].str.endswith(("& co.png", "copy.png")).all()
    assert (table["checked"] == "").all()
    assert table["why"].str.contains("same pixels as digit 8/").sum() == 1
    text = (out / "report.html").read_text()
    assert "digit 0/broken.png" in text
    assert "Same pixels" in text
    assert "data:image/jpeg" in text  # the files themselves, not the tensors


def test_the_report_works_on_desktop_and_phone_in_light_and_dark(audited, tab, tmp_path):  # noqa: F811
    (tmp_path / "nasty.html").write_text(rendered(findings(), changed=audit.changes(findings(), findings())))
    for path in (audited[1] / "report.html", tmp_path / "nasty.html"):
        open_page(tab, path)
        content = tab.evaluate(CONTENT)
        assert content["headings"] == 1
        assert all(image["alt"].strip() and image["width"] >= 1 for image in content["images"])
        tab.set_viewport_size(PHONE)
        overflow = tab.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
        assert overflow <= 0, f"{overflow} pixels wider than a phone"
        tab.set_viewport_size(DESKTOP)
        assert tab.evaluate(GROUND) > 0.8
        assert tab.evaluate(AXE, RULES) == []
        tab.emulate_media(color_scheme="dark")
        assert tab.evaluate(GROUND) < 0.3
        assert tab.evaluate(AXE, ["color-contrast"]) == []
        assert not tab.faults


def test_checked_labels_come_back_as_certain_and_the_report_says_what_changed(audited, capsys, tmp_path):
    command, out, _ = audited
    table = pd.read_csv(out / "suspects.csv", dtype=str, keep_default_na=False)
    table.loc[0, "checked"] = table.loc[0, "suggested"]  # changed
    table.loc[1, "checked"] = table.loc[1, "label"]  # right
    checked = table.iloc[:2].set_index("path")["checked"].to_dict()
    table.to_csv(out / "suspects.csv", index=False)

    assert cli.main(command) == 2  # would overwrite what a person did
    assert "holds 2 labels that a person checked and this run would lose" in capsys.readouterr().err
    assert cli.main([*command, "--json", "--corrections", str(out / "suspects.csv")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["changed"]["checked"] == 2
    assert found["changed"]["changed"] == (table.loc[0, "suggested"] != table.loc[0, "label"])
    assert "Labels that a person checked: 2, of which changed:" in (out / "report.html").read_text()
    after = pd.read_csv(out / "suspects.csv", dtype=str, keep_default_na=False).set_index("path")
    for path, label in checked.items():
        assert after.loc[path, ["label", "trust", "flagged", "checked"]].tolist() == [label, "1.0", "False", label]
        assert "checked by a person" in after.loc[path, "why"]
    assert (after["checked"] != "").sum() == 2

    table.to_csv(tmp_path / "earlier.csv", index=False)
    again = pd.read_csv(out / "suspects.csv", dtype=str, keep_default_na=False)
    other = next(name for name in ("digit 0", "digit 1") if name != table.loc[1, "checked"])
    again.loc[again["path"] == table.loc[1, "path"], "checked"] = other
    again.to_csv(out / "suspects.csv", index=False)
    assert cli.main([*command, "--corrections", str(tmp_path / "earlier.csv")]) == 2  # another label of the same image
    assert "holds 1 labels that a person checked and this run would lose" in capsys.readouterr().err
    after.reset_index().to_csv(out / "suspects.csv", index=False)
    assert after.index[-2:].isin(list(checked)).all()

    stages = sorted((out / "divert").iterdir())
    assert cli.main([*command, "--corrections", str(out / "suspects.csv")]) == 0
    assert sorted((out / "divert").iterdir()) == stages  # the list is another file with the same corrections


def test_the_posterior_holds_checked_labels_as_certain():
    params = {"dataset": "digits", "n_train": 100, "n_test": 10, "preset": "smoke", "width": 4, "auditor_epochs": 2}
    config = Config.from_params(**params, auditor_warmup=1, arm="tad-posterior")
    data = pipeline.dataset(config)
    labels = NoisyLabels.as_given(data.y_train, None, 10, 0)
    labels = replace(labels, checked_N=torch.arange(100) < 5)
    problem = pipeline.noisy_problem(config, data, labels)
    method = pipeline.trust_method(config)
    state = method.init(problem)
    assert torch.equal(state.target[:5], problem.noisy_NK[:5])
    for _ in range(method.epochs):
        method.step(problem, state)
    refined = method.result(problem, state)
    assert (refined.trust[:5] == 1).all()
    torch.testing.assert_close(refined.y[:5], problem.noisy_NK[:5])
    torch.testing.assert_close(refined.weight[:5], torch.ones(5))


def test_an_arm_without_probabilities_is_refused(tmp_path):
    with pytest.raises(InputError, match="arm tad estimates no probability for each class"):
        audit.audit(Config.from_params(arm="tad", out=str(tmp_path)))


# Files of corrections

LABELS = NoisyLabels(torch.tensor([0, 1, 2, 1]), None, 3, "none", 0.0, 0, None)
WHERE = {"class_names": ("NA", "1", "c"), "index_N": torch.tensor([3, 5, 8, 9]), "paths": ("a.png", "b.png", "c", "d")}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    "columns, checked",
    [
        ({"path": ["b.png", "a.png"], "label": ["NA", "NA"]}, {1: 0, 0: 0}),
        ({"index": [8, 3], "label": ["1", "c"]}, {2: 1, 0: 2}),
        ({"path": ["a.png", "d"], "label": ["c", "c"], "checked": ["", "NA"]}, {3: 0}),
        ({"id": [7], "path": ["c"], "image": ["/data/x"], "checked": ["c"], "annotator": [1]}, {2: 2}),
    ],
)
def test_corrections_are_read_from_tables(tmp_path, suffix, columns, checked):
    file, table = tmp_path / f"checked{suffix}", pd.DataFrame(columns)
    table.to_csv(file, index=False) if suffix == ".csv" else table.to_parquet(file)
    got = corrected(LABELS, file, **WHERE)
    assert {int(i): int(got.noisy_N[i]) for i in got.checked_N.nonzero()[:, 0]} == checked
    assert torch.equal(got.noisy_N[~got.checked_N], LABELS.noisy_N[~got.checked_N])
    assert torch.equal(got.original_N, LABELS.noisy_N)
    got.save(tmp_path / "labels.safetensors")
    again = NoisyLabels.load(tmp_path / "labels.safetensors")
    assert torch.equal(again.checked_N, got.checked_N)
    assert torch.equal(again.original_N, got.original_N)
    assert again.checksum == got.checksum


@pytest.mark.parametrize(
    "text, message",
    [
        ("path,label\na.png,NA\na.png,c\n", "must name each image once, got path ['a.png']"),
        ("path,label\nz.png,NA\n", "column path must name training images in use; 1 are others, such as ['z.png']"),
        ("path,label\na.png,x\n", "labels must be among NA, 1, c; 1 are others, such as ['x']"),
        ("index,label\n4,c\n", "column index must name training images in use"),
        ("name,label\na.png,c\n", "must say which images were checked in a column path or index"),
        ("path,class\na.png,c\n", "must have a column checked or label"),
        ("path,label,checked\na.png,c,\n", "holds no label that was checked"),
        ("", "is damaged or no table"),
    ],
)
def test_bad_corrections_are_told(tmp_path, text, message):
    file = tmp_path / "checked.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        corrected(LABELS, file, **WHERE)


def test_corrections_that_are_missing_or_of_another_type_are_told(tmp_path):
    with pytest.raises(InputError, match="corrections .*no.csv does not exist"):
        read_corrections(tmp_path / "no.csv")
    with pytest.raises(InputError, match="unknown type of file of corrections '.txt'"):
        read_corrections(tmp_path / "no.txt")


def test_corrections_are_the_same_whatever_the_order_and_the_format(tmp_path):
    table = pd.DataFrame({"path": ["b.png", "a.png"], "label": ["c", "NA"], "other": [1, 2]})
    table.to_csv(tmp_path / "a.csv", index=False)
    table[::-1].drop(columns="other").to_parquet(tmp_path / "b.parquet")
    assert corrections_checksum(tmp_path / "a.csv") == corrections_checksum(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--seed", "0", "1"], "tad audit takes one seed, got (0, 1)"),
        (["--corrections", "none.csv"], "corrections none.csv does not exist"),
        (["--resolution", "0"], "resolution must be an integer in [1, 8] for digits, got 0"),
    ],
)
def test_bad_input_exits_2_before_any_work(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.setattr(pipeline, "Work", None)  # any work would need one
    assert cli.main(["audit", "--out", str(tmp_path / "out"), *TINY, *options]) == 2
    assert message in capsys.readouterr().err


def test_settings_of_the_data_reach_an_audit_as_its_options_do(tmp_path, monkeypatch):
    seen = []

    def stop(config):
        seen.append((config.n_train, config.resolution))
        raise InputError("enough")

    monkeypatch.setattr(audit, "audit", stop)
    for options in (["--n-train", "200", "--resolution", "4"], ["--set", "n_train=200", "resolution=4"]):
        assert cli.main(["audit", "--device", "cpu", "--out", str(tmp_path / "out"), *options]) == 2
    assert seen == [(200, 4)] * 2
