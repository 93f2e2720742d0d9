"""Cards of evaluations: what they say, which are refused, and which accuracies are doubted."""

import dataclasses
import json
import shutil

import pytest

from tests.helpers import REPO, tool
from vidrobust import config
from vidrobust.evaluation.adversarial.curve import CurvePoint
from vidrobust.evaluation.report.card import (
    Card,
    Checks,
    _validator,
    check_card_options,
    make_card,
    read_card,
    unreliable_reasons,
    write_card,
)
from vidrobust.evaluation.representation.knn_and_probe import Accuracy
from vidrobust.evaluation.results import _FREE
from vidrobust.evaluation.summary import Summary, read_summary
from vidrobust.models.complexity import Complexity
from vidrobust.utils.errors import UserError
from vidrobust.utils.stopping import EXIT_BELOW, EXIT_STOPPED

CHECKED = Checks(8, [])


def point(threat="linf-1/255", eps=1 / 255, **others):
    values = {
        "threat": threat,
        "kind": "linf",
        "norm": "linf",
        "support": "dense",
        "k": 0,
        "eps": eps,
        "n": 10,
        "robust_acc": 0.4,
        "ci95": [0.2, 0.7],
        "robust_acc_uint8": 0.5,
        "robust_acc_h264": None,
        "max_measured": eps,
        "out_of_budget": 0,
        "killed_by": {"pgd": 4, "clean": 2},
        "passes": {"pgd": [10, 10]},
        "rejected": {},
    }
    return CurvePoint(**values | others)


def summary(**others):
    values = {
        "n": 10,
        "dataset": "list",
        "split": "test",
        "branch": "clean",
        "views": {"attack": "2x3", "representation": "2x3"},
        "chance": 0.5,
        "classifier": "own head",
        "representation": {"head": Accuracy(0.75, [0.5, 0.9], 8)},
        "failed": [],
        "geometry": None,
        "curve": [point("linf-0", 0.0), point()],
        "clean_acc": 0.8,
        "suite": "pgd-20x1",
        "attacks": ["pgd"],
        "warnings": [],
        "corruption": None,
        "checkpoint": "step 3, weights abc",
        "model": Complexity(1000, 2_000_000_000),
    }
    return Summary(**values | others)


def checked(folder, lines=()):
    """Let the folder look as if model and attack had been checked."""
    (folder / "identity.json").write_text(json.dumps({"options": {"eval.checks": "8"}}))
    (folder / "checks.json").write_text(json.dumps(list(lines)))


def written(folder, cfg=None, **others):
    write_card(folder, summary(**others), cfg or config.CardConfig())
    return read_card(folder / "card.json")


# --- Contents ---


def test_the_schema_has_the_fields_of_the_card():
    schema = _validator().schema
    names = [field.name for field in dataclasses.fields(Card)]
    assert sorted(schema["properties"]) == sorted(names)
    assert sorted(schema["required"]) == sorted(names)
    _validator().check_schema(schema)


def test_a_card_has_an_entry_per_threat_that_changes_anything(tmp_path):
    card = written(tmp_path)
    assert [each.threat for each in card.robust] == ["linf-1/255"]
    assert card.robust[0].accuracy == 0.4 and card.robust[0].ci95 == [0.2, 0.7]
    assert card.clean.accuracy == 0.8 and card.clean.n == 10


def test_the_cost_of_a_prediction_is_that_of_all_its_views_and_passes(tmp_path):
    card = written(tmp_path, eot=4)
    assert card.gflops_per_view == 2
    assert card.gflops_per_prediction == 2 * 6 * 4
    assert card.number_forward_passes == 4


def test_without_attacks_the_clean_accuracy_is_that_of_the_classifier(tmp_path):
    card = written(tmp_path, clean_acc=None, curve=[], suite=None, attacks=[])
    assert card.clean.accuracy == 0.75 and card.clean.n == 8
    assert card.robust == [] and not card.unreliable and card.checks is None


def test_videos_with_several_labels_have_a_card_without_an_accuracy(tmp_path):
    card = written(tmp_path, clean_acc=None, curve=[], suite=None, representation={})
    assert card.clean is None


def test_a_model_of_another_package_is_named_by_its_spec(tmp_path):
    card = written(tmp_path, checkpoint="hf:a/b, weights x, weights 12, input 3")
    assert card.architecture == "hf:a/b, weights x" and card.training == ""


def test_options_of_the_card_are_kept_until_others_are_given(tmp_path):
    first = config.CardConfig(
        name="<A> | é", link="https://a.b/c", additional_data="K400", reported=["linf-1/255=45"]
    )
    card = written(tmp_path, first)
    assert (card.additional_data, card.additional_data_names) == (True, "K400")
    assert card.reported == {"linf-1/255": 0.45}
    card = written(tmp_path, config.CardConfig(venue="CVPR 2025", additional_data="none"))
    assert (card.name, card.link, card.venue) == ("<A> | é", "https://a.b/c", "CVPR 2025")
    assert (card.additional_data, card.additional_data_names) == (False, "")
    assert card.reported == {"linf-1/255": 0.45}


def test_options_of_the_card_change_no_identity_and_no_hash():
    cfg = config.Config()
    before = config.config_sha(cfg)
    assert before == config.config_sha(config.Config())
    keys = {f"eval.card.{key}" for key in vars(config.CardConfig())}
    assert keys <= set(_FREE) and len(keys) == 6
    cfg.eval.card.name = "A"
    assert config.config_sha(cfg, _FREE) == config.config_sha(config.Config(), _FREE)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"link": "javascript:alert(1)"}, "eval.card.link=javascript.*: must begin with https"),
        ({"link": "https://a b"}, "must begin with https"),
        ({"link": "https://a.b\n"}, r"eval.card.link=https://a.b\\n: must begin with https"),
        ({"reported": ["linf-1/255=145"]}, "eval.card.reported: .*must be 0 to 100"),
        ({"reported": ["linf-1/255=nan"]}, "must be 0 to 100"),
        ({"reported": ["robust=45"]}, "write THREAT=PERCENT"),
        ({"reported": ["clean"]}, "write THREAT=PERCENT"),
        ({"reported": ["clean=1", "clean=2"]}, "given twice"),
    ],
)
def test_options_that_no_card_can_hold_are_refused(option, message):
    with pytest.raises(UserError, match=message):
        check_card_options(config.CardConfig(**option))


def _test_sha(folder, *videos):
    rows = [json.dumps({"uid": uid, "label": label}) + "\n" for uid, label in videos]
    (folder / "predictions.jsonl").write_text("".join(rows))
    return written(folder).hashes.test_videos


def test_the_hash_of_test_videos_is_that_of_names_and_classes_in_any_order(tmp_path):
    assert written(tmp_path).hashes.test_videos == ""
    first = _test_sha(tmp_path, ("a", 0), ("b\udc80", 1))
    assert len(first) == 16 and _test_sha(tmp_path, ("b\udc80", 1), ("a", 0)) == first
    assert _test_sha(tmp_path, ("a", 1), ("b\udc80", 1)) != first
    assert _test_sha(tmp_path, ("c", 0), ("b\udc80", 1)) != first


def test_a_card_of_before_the_hash_of_test_videos_is_read(tmp_path):
    written(tmp_path)
    content = json.loads((tmp_path / "card.json").read_text())
    del content["hashes"]["test_videos"]
    (tmp_path / "card.json").write_text(json.dumps(content))
    assert read_card(tmp_path / "card.json").hashes.test_videos == ""


# --- Cards that do not validate ---


def _changed(**changes):
    def change(content):
        content.update(changes)

    return change


def _robust(**changes):
    def change(content):
        content["robust"][0].update(changes)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_changed(other=1), "'other' was unexpected"),
        (lambda content: content.pop("robust"), "'robust' is a required property"),
        (_changed(chance=1.5), "chance: 1.5 is greater than the maximum of 1"),
        (_changed(chance=float("nan")), "chance: .*NaN or infinite"),
        (_changed(parameters=10**400), "parameters: 1000.*greater than the maximum"),
        (_changed(number_forward_passes=10**400), "number_forward_passes: 1000"),
        (_changed(gflops_per_view=10**400), "gflops_per_view: 1000"),
        (_changed(input={"fps": 10**400}), "input.fps: 1000"),
        (_changed(input={"mean": [10**400]}), r"input.mean\[0\]: 1000"),
        (_changed(link="https://a.b\n"), "link: .*must begin with https"),
        (_changed(views={"attack": "1x1\n"}), "views.attack: .*must be clips x crops"),
        (_changed(name="a\ud800"), "name: .*half of a surrogate pair"),
        (_changed(attacks=["pgd", "\udc80"]), r"attacks\[1\]: .*half of a surrogate pair"),
        (_changed(reported={"linf-9": 0.5}), "reported.linf-9: linf-9: eps=9"),
        (_robust(norm="l2"), r"robust\[0\].norm: l2 is not that of linf-1/255, linf"),
        (_robust(support="tube"), r"robust\[0\].support: tube is not that of linf-1/255, dense"),
        (_robust(eps=2 / 255), r"robust\[0\].eps: 0.00784314 is not that of linf-1/255"),
        (_robust(threat="linf-0", eps=1e-12), r"robust\[0\].threat: linf-0 changes nothing"),
        (_robust(accuracy=0.1), r"robust\[0\].accuracy: 0.1 is outside of ci95, 0.2 to 0.7"),
        (_robust(accuracy=0.8), r"robust\[0\].accuracy: 0.8 is outside of ci95"),
        (_robust(ci95=[0.7, 0.2]), r"robust\[0\].ci95: 0.7 is above 0.2"),
        (
            lambda content: content["clean"].update(accuracy=0.1),
            "clean.accuracy: 0.1 is outside of ci95",
        ),
        (lambda content: content["clean"].update(ci95=[1, 0]), "clean.ci95: 1 is above 0"),
        (_changed(chance=True), "chance: True is not"),
        (_changed(link="javascript:alert(1)"), "link: .*must begin with https"),
        (_changed(link="https://a.b\n<b>"), "link: .*must begin with https"),
        (_changed(unreliable=True), "unreliable_reasons: "),
        (_changed(unreliable_reasons=["x"]), "unreliable_reasons: "),
        (_changed(unreliable="no"), "unreliable: 'no' is not of type 'boolean'"),
        (_changed(format=2), "format: 1 was expected"),
        (_changed(hashes={}), "required property"),
        (_changed(views={"attack": "0x1"}), "views.attack: .*must be clips x crops"),
        (_changed(reported={"<script>": 0.5}), "reported: "),
        (lambda content: content["robust"].append(content["robust"][0]), "is there twice"),
        (lambda content: content["robust"][0].update(threat="<b>"), r"robust\[0\].threat"),
        (
            lambda content: content["robust"][0].update(threat="linf-9"),
            r"robust\[0\].threat: linf-9: eps=9",
        ),
        (
            lambda content: content["robust"][0].update(threat="linf-0.00392156862745098"),
            "write linf-1/255",
        ),
    ],
)
def test_a_card_that_does_not_validate_is_refused_with_its_entry(tmp_path, change, message):
    checked(tmp_path)
    written(tmp_path)
    path = tmp_path / "card.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        read_card(path)
    assert str(error.value).startswith(f"{path}: no valid card: ") and "\n" not in str(error.value)
    assert "--report-only" in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '"card"', "\x00"])
def test_a_file_that_is_no_object_is_refused(tmp_path, text):
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(UserError, match=r"card\.json: "):
        read_card(tmp_path / "card.json")


def test_bytes_of_names_that_are_no_text_are_escaped_in_a_card(tmp_path):
    card = written(tmp_path, config.CardConfig(name="a\udc80"), checkpoint="x\udcff.pt, weights 1")
    assert card.name == "a\\udc80" and card.architecture == "x\\udcff.pt"


def test_a_card_is_not_written_over_one_that_does_not_validate(tmp_path):
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(UserError, match="no valid card"):
        written(tmp_path)
    assert (tmp_path / "card.json").read_text() == "{}"


# --- Unreliable ---


@pytest.mark.parametrize(
    ("others", "checks", "effort", "reason"),
    [
        ({}, None, None, "not checked"),
        ({}, Checks(0, []), None, "not checked"),
        ({}, Checks(8, ["the gradient is 0 for 3"]), None, "the gradient is 0"),
        ({}, CHECKED, 0.5, "0.5 of its effort"),
        ({"eot": 4}, CHECKED, None, "the model is random"),
        ({"suite": "rand"}, CHECKED, 1.0, "the model is random"),
        ({"attacks": ["square"]}, CHECKED, None, "no attack with gradients"),
        ({"curve": [point(out_of_budget=1)]}, CHECKED, None, "1 adversarial clips exceed"),
        (
            {"curve": [point(killed_by={"apgd-ce": 1, "square": 3}, passes={"apgd-ce": [1, 1]})]},
            CHECKED,
            1.0,
            "black-box attacks broke 3 of 10",
        ),
        (
            {
                "representation": {
                    "trained_probe": Accuracy(0.3, [], 9),
                    "random_probe": Accuracy(0.3, [], 9),
                }
            },
            CHECKED,
            None,
            "may appear robust",
        ),
    ],
)
def test_a_robust_accuracy_is_doubted_for_a_reason(others, checks, effort, reason):
    lines = unreliable_reasons(summary(**others), checks, effort)
    assert len(lines) == 1 and reason in lines[0]


@pytest.mark.parametrize("effort", [None, 1.0, 2.0])
def test_a_checked_and_whole_attack_is_not_doubted(effort):
    assert unreliable_reasons(summary(), CHECKED, effort) == []


def test_an_evaluation_without_attacks_has_nothing_to_doubt():
    assert unreliable_reasons(summary(curve=[point("linf-0", 0.0)]), None, 0.5) == []


@pytest.mark.parametrize(
    ("suite", "effort"),
    [
        ("autoattack", 1.0),
        ("plus, effort 0.25", 0.25),
        ("pgd-20x1", None),
        ("pgd-20x1, step 0.25 eps", None),
        ("square-5000x1", None),
    ],
)
def test_the_effort_is_read_from_the_suite(tmp_path, suite, effort):
    assert written(tmp_path, suite=suite).effort == effort


def test_lines_of_checks_that_are_no_doubts_are_left_out(tmp_path):
    checked(tmp_path, ["checks left out clips: a", "masked"])
    card = written(tmp_path)
    assert card.checks == Checks(8, ["masked"]) and card.unreliable_reasons == ["masked"]


def test_the_card_has_the_number_of_clips_that_were_checked(tmp_path):
    checked(tmp_path)  # asked for 8
    assert written(tmp_path, checks=3).checks == Checks(3, [])


def test_a_summary_without_the_number_of_checks_has_that_of_the_options(tmp_path):
    checked(tmp_path)
    assert written(tmp_path, checks=None).checks == Checks(8, [])


def test_checks_that_were_off_are_a_reason_to_doubt(tmp_path):
    card = written(tmp_path, checks=0)
    assert card.checks == Checks(0, []) and "were not checked" in card.unreliable_reasons[0]


def test_checks_that_no_clip_withstood_are_a_reason_to_doubt(tmp_path):
    checked(tmp_path, ["model and attack were not checked: no clip can be used: a: NaN"])
    card = written(tmp_path, checks=8)
    assert card.unreliable and "no clip can be used" in card.unreliable_reasons[0]


# --- Real evaluations ---


@pytest.mark.parametrize("name", ["pgd", "corrupted"])
def test_an_evaluation_of_before_cards_has_one(name):
    folder = REPO / "tests/files/before_layout/run/eval" / name
    card = make_card(folder, read_summary(folder / "summary.json"), config.CardConfig())
    content = json.loads(json.dumps(dataclasses.asdict(card)))
    assert not list(_validator().iter_errors(content))
    assert card.architecture == "r2plus1d_10, width 2" and card.training == "simclr with clae"
    assert card.input["frames"] == 2 and card.input["size"] == [16, 16]
    assert bool(card.robust) == (name == "pgd") and (card.corrupted is None) == (name == "pgd")


def test_a_damaged_option_of_an_evaluation_is_named(tmp_path):
    (tmp_path / "identity.json").write_text(json.dumps({"options": {"data.size": "wide"}}))
    with pytest.raises(UserError, match="data.size=wide is no number"):
        written(tmp_path)


def test_report_only_adds_what_is_known_of_the_model(tmp_path):
    shutil.copytree(REPO / "tests/files/before_layout/run", tmp_path / "run")
    words = ["--checkpoint", "run", "--report-only", "eval.card.name=Name"]
    done = tool("test_net", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_card(tmp_path / "run/eval/pgd/card.json").name == "Name"


# --- test_net --fail-under ---


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A run with an evaluation: 75 % under linf-8/255, 100 % clean."""
    top = tmp_path_factory.mktemp("earlier")
    shutil.copytree(REPO / "tests/files/before_layout", top, dirs_exist_ok=True)
    return top


@pytest.mark.parametrize(
    ("limits", "status", "lines"),
    [
        (["linf-8/255=75,clean=100"], 0, []),
        (["linf-8/255=76"], EXIT_BELOW, ["linf-8/255: 75.00 % is below 76 %"]),
        (["linf-8/255=80", "--fail-under", "linf-0=101"], 1, ["linf-0=101: must be 0 to 100"]),
        (["linf-1/255=1"], 1, ["has no such accuracy; it has clean, linf-0, linf-8/255"]),
    ],
)
def test_an_accuracy_below_its_limit_ends_with_a_status_of_its_own(earlier, limits, status, lines):
    words = ["--checkpoint", "run", "--report-only", "--fail-under", *limits]
    done = tool("test_net", *words, cwd=earlier)
    assert done.returncode == status, done.stderr
    errors = [line for line in done.stderr.splitlines() if " E " in line]
    assert len(errors) == len(lines)
    assert all(text in line for text, line in zip(lines, errors, strict=True))


def test_an_unknown_limit_is_refused_before_anything_is_measured(earlier):
    words = ["--checkpoint", "run", "eval.name=new", "--fail-under", "linf-1/255=1"]
    done = tool("test_net", *words, cwd=earlier)
    assert done.returncode == 1 and "has no such accuracy" in done.stderr
    assert not (earlier / "run/eval/new").exists()


def test_the_status_differs_from_those_of_mistakes_and_stops():
    assert EXIT_BELOW not in (0, 1, 2, EXIT_STOPPED)
