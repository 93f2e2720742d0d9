"""Cards in order: groups, ranks, ties and missing accuracies; and where they are found."""

import dataclasses
import json

import pytest

from tests.evaluation.report.card_helpers import card
from vidrobust.evaluation.report.card import CorruptedAccuracy, Hashes
from vidrobust.evaluation.report.ranked_cards import (
    Entry,
    collect,
    doubts_of_groups,
    measures_of,
    ranked,
    ranking_measure,
)
from vidrobust.utils.errors import UserError

EPS = "linf-1/255"
FOG = CorruptedAccuracy(0.1, ["fog"], [3])


def entries(*cards):
    return [Entry(each, f"p{number}") for number, each in enumerate(cards)]


def order(items, measure=EPS):
    return [(items[each.number].name, each.rank) for each in ranked(items, measure)]


def test_the_highest_accuracy_comes_first():
    items = entries(card("a", 0.2), card("b", 0.9), card("c", 0.5))
    assert order(items) == [("b", 1), ("c", 2), ("a", 3)]


def test_equal_accuracies_share_a_rank_and_are_ordered_by_name():
    items = entries(card("d", 0.1), card("C", 0.5), card("b", 0.5), card("a", 0.9))
    assert order(items) == [("a", 1), ("b", 2), ("C", 2), ("d", 4)]


def test_a_card_without_the_accuracy_comes_last_and_has_no_rank():
    items = entries(card("none", None), card("zero", 0.0), card("some", 0.1))
    assert order(items) == [("some", 1), ("zero", 2), ("none", None)]


def test_an_unreliable_card_keeps_its_rank():
    items = entries(card("a", 0.2), card("b", 0.9, unreliable=True, unreliable_reasons=["x"]))
    assert order(items) == [("b", 1), ("a", 2)]


@pytest.mark.parametrize(
    "other",
    [
        {"dataset": "z"},
        {"split": "z"},
        {"unit": "video"},
        {"suite": "z"},
        {"n": 9},
        {"chance": 1 / 3},
        {"hashes": Hashes("", "", "v", "other test videos")},
    ],
)
def test_cards_of_other_data_or_attacks_are_not_ranked_together(other):
    items = entries(card("a", 0.2), card("b", 0.9, **other), card("c", 0.1))
    ranks = dict(order(items))
    assert ranks == {"a": 1, "b": 1, "c": 2}
    # rows of a group are next to each other
    assert order(items).index(("a", 1)) + 1 == order(items).index(("c", 2))


def test_cards_are_ranked_by_any_accuracy():
    items = entries(card("a", 0.2, clean=0.9, corrupted=FOG), card("b", 0.9, clean=0.8))
    assert measures_of(items) == [EPS, "mpc", "clean"]
    assert order(items, "clean") == [("a", 1), ("b", 2)]
    assert order(items, "mpc") == [("a", 1), ("b", None)]


def test_a_group_without_the_accuracy_comes_last():
    items = entries(card("a", None, dataset="a set"), card("b", 0.1), card("c", 0.2))
    assert order(items) == [("c", 1), ("b", 2), ("a", None)]
    assert order(items, "clean")[0] == ("a", 1)


def test_threats_are_ordered_by_kind_and_budget():
    items = entries(
        card("a", 0.1, "linf-2/255"), card("b", 0.1, "flicker-linf-8/255"), card("c", 0.1)
    )
    assert measures_of(items)[:3] == [EPS, "linf-2/255", "flicker-linf-8/255"]


def test_the_threat_of_most_cards_ranks_unless_another_is_asked_for():
    items = entries(card("a", 0.1, "linf-2/255"), card("b", 0.1), card("c", 0.2, "linf-2/255"))
    assert ranking_measure(items) == "linf-2/255"
    assert ranking_measure(items, "linf-0.00392156862745098") == EPS
    assert ranking_measure(items, "clean") == "clean"
    assert ranking_measure(entries(card("a", None))) == "clean"


@pytest.mark.parametrize(
    ("asked", "message"), [("linf-8/255", "no card has"), ("x", "--sort x: "), ("mpc", "no card")]
)
def test_an_accuracy_that_no_card_has_is_refused(asked, message):
    with pytest.raises(UserError, match=message):
        ranking_measure(entries(card("a", 0.1)), asked)


def test_what_differs_within_a_group_is_reported():
    items = entries(card("a", 0.1), card("b", 0.1, classifier="kNN"))
    assert doubts_of_groups(items) == ["the classifiers differ (kNN, own head)"]
    items = entries(card("a", 0.1), card("b", 0.1, hashes=Hashes("", "", "other")))
    assert "lists of videos differ" in doubts_of_groups(items)[0]
    same = [card("ab"[i], 0.1, hashes=Hashes("", "", f"v{i}", "test")) for i in range(2)]
    expected = "the test videos are the same, but not the lists of training videos"
    assert doubts_of_groups(entries(*same)) == [expected]
    other = CorruptedAccuracy(0.1, ["fog"], [4])
    items = entries(card("a", 0.1, corrupted=FOG), card("b", 0.1, corrupted=other))
    assert doubts_of_groups(items) == ["the corruptions of mpc differ"]
    assert doubts_of_groups(entries(card("a", 0.1), card("b", 0.2, corrupted=FOG))) == []


# --- Where cards are ---


def save(path, each):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(each)))


def test_a_run_has_the_cards_of_all_its_evaluations(tmp_path):
    save(tmp_path / "run/eval/b/card.json", card("b", 0.1))
    save(tmp_path / "run/eval/a/card.json", card("a", 0.1))
    (tmp_path / "run/eval/unfinished").mkdir()
    assert [each.name for each in collect([tmp_path / "run"])] == ["a", "b"]


def test_a_card_is_collected_once(tmp_path):
    save(tmp_path / "run/eval/a/card.json", card("a", 0.1))
    places = ["run", "run/eval/a", "run/eval/a/card.json", "run/eval/../eval/a"]
    assert len(collect([tmp_path / place for place in places])) == 1


def test_a_card_without_a_name_is_named_by_its_place(tmp_path):
    save(tmp_path / "mine.json", card("", 0.1))
    assert collect([tmp_path / "mine.json"])[0].name == str(tmp_path / "mine.json")


def test_names_of_places_leave_out_what_they_have_in_common(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / f"runs/{name}/eval/pgd/card.json", card("", 0.1))
    collected = collect([tmp_path / "runs/b", tmp_path / "runs/../runs/a"])
    assert [each.name for each in collected] == ["b/eval/pgd", "a/eval/pgd"]
    assert collected[0].place == str(tmp_path / "runs/b/eval/pgd")


@pytest.mark.parametrize("place", ["missing", "empty"])
def test_a_place_without_a_card_is_refused(tmp_path, place):
    (tmp_path / "empty/eval/unfinished").mkdir(parents=True)
    with pytest.raises(UserError, match=f"{place}: is no card, and no folder with"):
        collect([tmp_path / place])


def test_a_card_that_does_not_validate_is_refused_by_name(tmp_path):
    save(tmp_path / "run/eval/a/card.json", card("a", 0.1, chance=7.0))
    with pytest.raises(UserError, match=r"eval/a/card\.json: no valid card: chance: 7.0"):
        collect([tmp_path / "run"])


def test_a_damaged_summary_of_before_cards_is_refused_by_name(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UserError, match=r"summary\.json: damaged"):
        collect([tmp_path])
