"""Data sets whose lists name videos by an id, in the layouts of their releases."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidrobust.config import DataConfig
from vidrobust.data import (
    FORMATS,
    Record,
    build_records,
    charades,
    diving48,
    finegym,
    kinetics,
    records_sha,
    require_labels,
    ssv2,
)
from vidrobust.utils.errors import UserError


def _touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def _refused(parse, root, split="train"):
    """Return the message with which a parser refuses a data set; one line."""
    with pytest.raises(UserError) as error:
        parse(root, split, 1)
    assert "\n" not in str(error.value)
    return str(error.value)


# ------------------------------------------------------------------ Something-Something v2

_TEMPLATES = {"Pushing something": "1", "Putting something on something": "0"}


def _ssv2(root, prefix="", videos="20bn-something-something-v2"):
    root.mkdir(parents=True, exist_ok=True)
    train = [
        {"id": "78687", "label": "pushing cup", "template": "Pushing [something]"},
        {"id": "42326", "template": "Putting [something] on [something]", "placeholders": ["a"]},
    ]
    validation = [{"id": "7", "template": "Pushing [something]"}]
    for name, content in (
        ("labels", _TEMPLATES),
        ("train", train),
        ("validation", validation),
        ("test", [{"id": "8"}]),
    ):
        (root / f"{prefix}{name}.json").write_text(json.dumps(content))
    for name in ("78687", "42326", "7"):
        _touch(root / videos / f"{name}.webm")
    return root


@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
def test_ssv2_finds_the_class_of_a_template_without_its_brackets(tmp_path, prefix):
    root = _ssv2(tmp_path, prefix)
    records, classes = ssv2(root, "train", 1)
    assert classes == ["Putting something on something", "Pushing something"]
    assert [(r.uid, r.label) for r in records] == [("78687.webm", 1), ("42326.webm", 0)]
    assert records[0].path == str(root / "20bn-something-something-v2/78687.webm")


def test_the_validation_list_of_ssv2_is_the_test_split(tmp_path):
    (record,), _ = ssv2(_ssv2(tmp_path), "test", 1)
    assert (record.uid, record.label) == ("7.webm", 1)


def test_ssv2_is_read_from_a_folder_of_labels_and_from_other_containers(tmp_path):
    root = _ssv2(tmp_path / "labels", videos="../videos").parent
    (root / "videos/7.webm").rename(root / "videos/7.mp4")
    (record,), _ = ssv2(root, "test", 1)
    assert record.uid == "7.mp4"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train", "[{", r"train.json, line 1: not JSON"),
        ("train", '{"a": 1}', r"train.json: not a list of videos"),
        ("train", "[1]", r"train.json, entry 1: not an object, but '1'"),
        ("train", '[{"id": "7"}]', r"train.json, entry 1: .* \(test.json has no labels\)"),
        ("train", '[{"template": "Pushing [something]"}]', "entry 1: an entry has an id"),
        (
            "train",
            '[{"id": "7", "template": "Eating [something]"}]',
            r"template 'Eating \[something\]' is not in labels.json",
        ),
        ("train", '[{"id": "9", "template": "Pushing [something]"}]', "entry 1: no video 9 under"),
        ("train", '[{"id": "7", "template": "Pushing [something]"}]' * 2, "line 1: not JSON"),
        ("train", "[]", "lists no video"),
        ("labels", '{"Pushing something": "1"}', "the ids of 1 templates are not 0 to 0"),
        ("labels", '{"a": "0", "b": "0"}', "the ids of 2 templates are not 0 to 1"),
        ("labels", '{"a": "x"}', "the ids of 1 templates"),
        ("labels", "[]", "not an object of templates and ids"),
    ],
)
def test_mistakes_in_the_lists_of_ssv2_are_refused_by_entry(tmp_path, name, text, message):
    root = _ssv2(tmp_path)
    (root / f"{name}.json").write_text(text)
    with pytest.raises(UserError, match=message):
        ssv2(root, "train", 1)


def test_a_missing_list_of_ssv2_is_named(tmp_path):
    assert "no labels.json or something-something-v2-labels.json in" in _refused(ssv2, tmp_path)


# ------------------------------------------------------------------ Diving48


def _diving48(root, version="V2_"):
    root.mkdir(parents=True, exist_ok=True)
    vocab = [["Back", "15som", "05Twis", "FREE"], ["Inward", "25som", "NoTwis", "TUCK"]]
    train = [{"vid_name": "-mm_q_00155", "label": 1, "start_frame": 0, "end_frame": 162}]
    test = [{"vid_name": "_8V_00000", "label": 0, "start_frame": 0, "end_frame": 90}]
    (root / "Diving48_vocab.json").write_text(json.dumps(vocab))
    (root / f"Diving48_{version}train.json").write_text(json.dumps(train))
    (root / f"Diving48_{version}test.json").write_text(json.dumps(test))
    _touch(root / "rgb/-mm_q_00155.mp4")
    _touch(root / "rgb/_8V_00000.mp4")
    return root


@pytest.mark.parametrize("version", ["V2_", ""])
def test_diving48_reads_both_versions_of_its_lists(tmp_path, version):
    root = _diving48(tmp_path, version)
    (record,), classes = diving48(root, "train", 1)
    assert classes == ["Back 15som 05Twis FREE", "Inward 25som NoTwis TUCK"]
    assert (record.uid, record.label, record.group) == ("-mm_q_00155.mp4", 1, "-mm_q")
    (record,), _ = diving48(root, "test", 1)
    assert (record.uid, record.label) == ("_8V_00000.mp4", 0)


def test_diving48_does_not_mix_the_versions_of_its_lists(tmp_path):
    root = _diving48(tmp_path)
    (root / "Diving48_V2_test.json").rename(root / "Diving48_test.json")
    assert "no Diving48_V2_test.json in" in _refused(diving48, root, "test")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("V2_train", [{"vid_name": "a", "label": 2}], r"entry 1: label 2 is out of range 0\.\.1"),
        ("V2_train", [{"vid_name": "a", "label": True}], "a vid_name and a label"),
        ("V2_train", [{"vid_name": "a", "label": "1"}], "a vid_name and a label"),
        ("V2_train", [{"label": 1}], "a vid_name and a label"),
        ("V2_train", [{"vid_name": "a", "label": 1}], "entry 1: no video a under"),
        ("vocab", {"a": 1}, "Diving48_vocab.json: not a list of classes"),
    ],
)
def test_mistakes_in_the_lists_of_diving48_are_refused_by_entry(tmp_path, name, content, message):
    root = _diving48(tmp_path)
    (root / f"Diving48_{name}.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        diving48(root, "train", 1)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["7", "0", "Pushing [x]", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "template", "vid_name", "label"]), inner)
    ),
    max_leaves=8,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(_JSON, st.sampled_from(["labels", "train", "vocab"]))
def test_any_json_is_read_or_refused_in_one_line(tmp_path, content, name):
    root = _diving48(_ssv2(tmp_path))
    for stem in (name, f"Diving48_{name}", f"Diving48_V2_{name}"):
        (root / f"{stem}.json").write_text(json.dumps(content))
    for parse in (ssv2, diving48):
        try:
            records, classes = parse(root, "train", 1)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert all(0 <= record.label < len(classes) for record in records)


# ------------------------------------------------------------------ FineGym

_ELEMENT = "zNL3kn3UBmg_E_008111_008200_A_0046_0048"


def _gym99(root, train="gym99_train_element_v1.1.txt", val="gym99_val_element.txt"):
    root.mkdir(parents=True, exist_ok=True)
    (root / train).write_text(f"{_ELEMENT} 98\ngone0123456_E_1_2_A_1_2 0\n")
    (root / val).write_text("A0xAXXysHUo_E_002184_002237_A_0036_0037 3\n")
    _touch(root / f"subactions/{_ELEMENT}.mp4")
    _touch(root / "subactions/A0xAXXysHUo_E_002184_002237_A_0036_0037.mp4")
    return root


def _categories(count):
    names = [
        f"Clabel: {i:3}; set: {i % 4}; Glabel: {i + 5}; (VT) salto {i}; tuck" for i in range(count)
    ]
    return "\n".join(names) + "\n"


def test_finegym_reads_the_official_lists_and_counts_missing_clips(tmp_path, caplog):
    root = _gym99(tmp_path)
    (root / "gym99_categories.txt").write_text(_categories(99))
    (record,), classes = FORMATS["gym99"](root, "train", 1)
    assert (record.uid, record.label, record.group) == (f"{_ELEMENT}.mp4", 98, "zNL3kn3UBmg")
    assert len(classes) == 99 and classes[98] == "(VT) salto 98; tuck"
    assert "1 of 2 videos are not under" in caplog.text and "first gone0123456_E_" in caplog.text
    (record,), _ = FORMATS["gym99"](root, "test", 1)
    assert record.label == 3


def test_finegym_reads_the_lists_of_mmaction2(tmp_path):
    root = _gym99(tmp_path, "gym99_train.txt", "gym99_val.txt")
    (root / "gym99_train.txt").write_text(f"{_ELEMENT}.mp4 5")
    (record,), classes = finegym(root, "train", 1, classes=99)
    assert record.label == 5 and classes == [str(i) for i in range(99)]


def test_gym288_has_lists_and_labels_of_its_own(tmp_path):
    root = _gym99(tmp_path)
    assert "no gym288_train_element_v1.1.txt" in _refused(FORMATS["gym288"], root)
    (root / "gym288_train_element_v1.1.txt").write_text(f"{_ELEMENT} 287\n")
    (record,), classes = FORMATS["gym288"](root, "train", 1)
    assert record.label == 287 and len(classes) == 288


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train_element_v1.1", f"{_ELEMENT} 99\n", r"line 1: label 99 is out of range 0\.\.98"),
        ("train_element_v1.1", f"{_ELEMENT}\n", "line 1: expected an id and a label"),
        ("train_element_v1.1", f"{_ELEMENT} x\n", "line 1: expected an id and a label"),
        ("train_element_v1.1", "", "lists no video"),
        ("train_element_v1.1", f"{_ELEMENT} 1\n{_ELEMENT} 2\n", "is listed twice"),
        ("categories", "salto\n", "line 1: expected `Clabel: 0"),
        ("categories", _categories(98), "does not list the classes 0 to 98, but 98 others"),
        ("categories", _categories(1) * 2, "line 2: class 0 is listed twice"),
    ],
)
def test_mistakes_in_the_lists_of_finegym_are_refused_by_line(tmp_path, name, text, message):
    root = _gym99(tmp_path)
    (root / f"gym99_{name}.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        FORMATS["gym99"](root, "train", 1)


# ------------------------------------------------------------------ Kinetics-400, -600, -700


def _kinetics(root, classes, train="train.csv", val="val.csv"):
    root.mkdir(parents=True, exist_ok=True)
    header = "label,youtube_id,time_start,time_end,split\n"
    rows = [f"class {i:03},id-{i:03},{i},{i + 10},train\n" for i in range(classes)]
    (root / train).write_text(header + "".join(rows))
    (root / val).write_text(header + "class 001,val-0,5,15,validate\n")
    _touch(root / "train/class 001/id-001_000001_000011.mp4")
    _touch(root / "val/class 001/val-0.mp4")
    return root


@pytest.mark.parametrize("classes", [400, 600, 700])
def test_kinetics_of_each_size_is_read_by_its_name(tmp_path, classes):
    root = _kinetics(tmp_path, classes)
    (record,), names = FORMATS[f"kinetics{classes}"](root, "train", 1)
    assert (record.uid, record.label) == ("class 001/id-001_000001_000011.mp4", 1)
    assert len(names) == classes
    (record,), _ = FORMATS[f"kinetics{classes}"](root, "test", 1)
    assert (record.uid, record.label) == ("class 001/val-0.mp4", 1)


def test_kinetics_of_another_number_of_classes_is_refused_by_name(tmp_path):
    root = _kinetics(tmp_path, 400)
    assert (
        "train.csv lists 400 classes, and data.name=kinetics600 has 600; take the official list, or"
        " set data.name=kinetics" in _refused(FORMATS["kinetics600"], root, "test")
    )
    assert len(kinetics(root, "train", 1)[1]) == 400


@pytest.mark.parametrize("prefix", ["kinetics_", "kinetics600_", "kinetics-600_", "kinetics_600_"])
def test_kinetics_is_read_from_lists_that_begin_with_its_name(tmp_path, prefix):
    root = _kinetics(tmp_path, 600, f"{prefix}train.csv", f"{prefix}val.csv")
    assert len(FORMATS["kinetics600"](root, "test", 1)[0]) == 1


# ------------------------------------------------------------------ Charades

_CLASSES = "c000 Holding some clothes\nc001 Putting clothes somewhere\nc002 Taking a towel\n"
_HEADER = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"


def _charades(root, *actions):
    root.mkdir(parents=True, exist_ok=True)
    rows = [
        f'V{i},S{i},Kitchen,6,7,Yes,"A person, cooking",food,none,{text},30.1\n'
        for i, text in enumerate(actions)
    ]
    (root / "Charades_v1_classes.txt").write_text(_CLASSES)
    for split in ("train", "test"):
        (root / f"Charades_v1_{split}.csv").write_text(_HEADER + "".join(rows))
    for i in range(len(actions)):
        _touch(root / f"Charades_v1_480/V{i}.mp4")
    return root


def test_charades_has_several_labels_per_video(tmp_path):
    root = _charades(tmp_path, "c002 11.90 21.20;c000 0.00 12.60;c002 25.00 30.00", "")
    records, classes = charades(root, "train", 1)
    assert classes == ["Holding some clothes", "Putting clothes somewhere", "Taking a towel"]
    assert [(r.uid, r.label, r.labels, r.group) for r in records] == [
        ("V0.mp4", -1, (0, 2), "S0"),
        ("V1.mp4", -1, (), "S1"),
    ]
    assert len(charades(root, "test", 1)[0]) == 2


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ("c999 1 2", "line 2: expected actions such as `c092 11.90 21.20` with a class of"),
        ("c000", "line 2: expected actions"),
        ("0 1 2", "line 2: expected actions"),
    ],
)
def test_mistakes_in_the_lists_of_charades_are_refused_by_line(tmp_path, actions, message):
    with pytest.raises(UserError, match=message):
        charades(_charades(tmp_path, actions), "train", 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no class"),
        ("Holding some clothes\n", "line 1: expected `c000 Holding some clothes`"),
        ("c000 a\nc000 b\n", "line 2: class c000 is listed twice"),
    ],
)
def test_wrong_classes_of_charades_are_refused(tmp_path, text, message):
    root = _charades(tmp_path, "c000 1 2")
    (root / "Charades_v1_classes.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        charades(root, "train", 1)


def test_a_missing_video_or_column_of_charades_is_named(tmp_path):
    root = _charades(tmp_path, "c000 1 2", "c001 1 2")
    (root / "Charades_v1_480/V1.mp4").unlink()
    assert "line 3: no video V1 under" in _refused(charades, root)
    (root / "Charades_v1_train.csv").write_text("id,actions\n")
    assert "has the columns actions, id, subject" in _refused(charades, root)


def test_charades_can_be_split_by_subject(tmp_path):
    root = _charades(tmp_path, *["c000 1 2"] * 10)
    cfg = DataConfig(name="charades", root=str(root), validation=0.2)
    rest, held = build_records(cfg, "train")[0], build_records(cfg, "test")[0]
    assert len(rest) == 8 and len(held) == 2 and all(r.labels == (0,) for r in rest + held)


# ------------------------------------------------------------------ records with several labels


def test_what_needs_one_label_per_video_refuses_several_in_one_line(tmp_path):
    records, _ = charades(_charades(tmp_path, "c000 1 2"), "train", 1)
    with pytest.raises(UserError, match="method.name=supervised needs one label per video, and"):
        require_labels(records, "method.name=supervised")


def test_the_hash_of_records_with_one_label_is_that_of_earlier_versions():
    records = [
        Record("a.avi", "x/a.avi", 0, "g"),
        Record("b.avi", "x/b.avi", -1, frames=5, bad="cut", series="img_"),
    ]
    assert records_sha(records) == "f30719e51a1d9ce4"


def test_the_hash_of_records_depends_on_their_labels():
    hashes = {
        records_sha([Record("a", "a", -1, labels=labels)]) for labels in (None, (), (1,), (1, 2))
    }
    assert len(hashes) == 4
