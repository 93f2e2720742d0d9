import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidrobust.config import DataConfig
from vidrobust.data import Record, build_records, few_labels, write_list
from vidrobust.utils.errors import UserError

CLASSES = ["run", "jump"]


def _records(*counts):
    """Return records: counts[c] videos of class c."""
    return [
        Record(f"{label}/{i:03}.avi", f"/videos/{label}/{i:03}.avi", label)
        for label, count in enumerate(counts)
        for i in range(count)
    ]


def _per_class(records):
    return [sum(record.label == label for record in records) for label in range(len(CLASSES))]


@pytest.mark.parametrize(
    ("amount", "counts"),
    [
        ("1%", [1, 1]),  # 2 and 0.3 of them, at least one
        ("10%", [20, 3]),
        ("2.5%", [5, 1]),
        ("100%", [200, 30]),
        ("5", [5, 5]),
        ("1", [1, 1]),
    ],
)
def test_every_class_keeps_its_amount(amount, counts):
    records = _records(200, 30)
    counts = [2, 1] if amount == "1%" else counts
    assert _per_class(few_labels(records, CLASSES, amount, 0)) == counts


def test_halves_are_rounded_up():
    assert _per_class(few_labels(_records(25, 15), CLASSES, "10%", 0)) == [3, 2]


def test_the_choice_is_the_one_of_the_hashes():
    """A known answer: another order would silently change published lists."""
    chosen = few_labels(_records(20, 20), CLASSES, "2", 0)
    assert [record.uid for record in chosen] == ["0/004.avi", "0/010.avi", "1/002.avi", "1/017.avi"]


def test_the_order_of_the_list_does_not_matter_but_is_kept():
    records = _records(40, 20)
    chosen = few_labels(records, CLASSES, "10%", 3)
    reversed_choice = few_labels(records[::-1], CLASSES, "10%", 3)
    assert chosen == reversed_choice[::-1] and chosen == [r for r in records if r in chosen]


def test_another_seed_chooses_others():
    records = _records(40, 20)
    assert few_labels(records, CLASSES, "10%", 0) != few_labels(records, CLASSES, "10%", 1)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(0, 5),
    st.lists(st.sampled_from(["1%", "3%", "10%", "50%", "100%"]), min_size=2, max_size=2),
    st.lists(st.integers(1, 40), min_size=2, max_size=2),
)
def test_a_smaller_amount_is_a_subset_of_a_larger_one(counts, seed, percentages, numbers):
    records = _records(*counts)
    by_percentage = sorted(percentages, key=lambda text: float(text[:-1]))
    by_number = [str(number) for number in sorted(numbers)]
    for small, large in (by_percentage, by_number):
        inner = few_labels(records, CLASSES, small, seed)
        assert set(inner) <= set(few_labels(records, CLASSES, large, seed))
        assert min(_per_class(inner)) >= 1


def test_a_class_without_labels_is_refused_by_name():
    with pytest.raises(UserError, match="1 classes have no labelled video: jump; add some"):
        few_labels(_records(5, 0), CLASSES, "10%", 0)
    unlabelled = [*_records(5, 0), Record("x.avi", "/x.avi", -1)]
    with pytest.raises(UserError, match="no labelled video: jump"):
        few_labels(unlabelled, CLASSES, "1", 0)


def test_videos_without_a_label_are_left_out():
    records = [*_records(2, 2), Record("x.avi", "/x.avi", -1)]
    assert few_labels(records, CLASSES, "100%", 0) == records[:4]


def test_a_class_with_too_few_videos_gives_all_of_them_and_a_warning(caplog):
    chosen = few_labels(_records(10, 3), CLASSES, "5", 0)
    assert _per_class(chosen) == [5, 3]
    assert "1 classes have fewer than 5 videos, all of which are taken: jump (3)" in caplog.text


@pytest.mark.parametrize("amount", ["", "0", "0%", "101%", "2.5", "-1", "ten", "1e3", "5 %", "٣"])
def test_another_amount_is_refused_in_one_line(amount):
    with pytest.raises(UserError, match="must be a percentage above 0, such as 10%, or a whole"):
        few_labels(_records(5, 5), CLASSES, amount, 0)


def test_several_labels_per_video_are_refused():
    with pytest.raises(UserError, match="data.labels=1: needs one label per video"):
        few_labels([Record("a", "a", -1, labels=(0, 1))], CLASSES, "1", 0)


# ------------------------------------------------------------------ lists


def _touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_a_written_list_reads_back_with_paths_inside_and_outside_its_folder(tmp_path):
    names = ["a dir/clip, one 7.avi", "b 3", "caf\u00e9.avi", "c:d.avi", "#&[x].avi"]
    inside = [_touch(tmp_path / "lists" / name) for name in names]
    outside = _touch(tmp_path / "elsewhere/x.avi")
    records = [Record(path.name, str(path), i % 3 - 1) for i, path in enumerate([*inside, outside])]
    for name in ("train", "test"):
        write_list(records, CLASSES, tmp_path / f"lists/{name}.txt")
    cfg = DataConfig(name="list", root=str(tmp_path / "lists"))
    read, classes = build_records(cfg, "train")
    assert classes == CLASSES
    assert [(r.path, r.label) for r in read] == [(r.path, r.label) for r in records]
    assert [r.uid for r in read] == [*names, str(outside)]
    assert build_records(cfg, "test")[0] == read


def test_a_list_written_twice_has_the_same_bytes(tmp_path):
    records = [Record("x.avi", str(_touch(tmp_path / "x.avi")), 0)]
    contents = set()
    for _ in range(2):
        write_list(records, CLASSES, tmp_path / "train.txt")
        contents.add((tmp_path / "train.txt").read_bytes())
    assert contents == {b"x.avi 0\n"}


@pytest.mark.parametrize(
    "name",
    ["two\nlines.avi", "cr\r.avi", "caf\udce9.avi", "comma.avi,", "space.avi ", "\ufeffx.avi"],
)
def test_a_name_that_a_list_cannot_hold_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="a list cannot hold this name") as error:
        write_list([Record("x", str(tmp_path / name), 0)], CLASSES, tmp_path / "train.txt")
    assert "\n" not in str(error.value) and not (tmp_path / "train.txt").exists()


@settings(max_examples=100, deadline=None)
@given(
    st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=12).filter(
        lambda name: name not in (".", "..")
    )
)
def test_any_name_is_written_so_that_it_reads_back_or_refused(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("names")
    try:
        path = _touch(folder / f"{name}x" / f"y{name}")
    except (OSError, UnicodeEncodeError):
        return  # no file can have the name
    try:
        write_list([Record("x", str(path), 0)], CLASSES, folder / "train.txt")
    except UserError:
        return
    (record,), _ = build_records(DataConfig(name="list", root=str(folder)), "train")
    assert record.path == str(path)


def test_lists_that_could_not_be_read_are_refused(tmp_path):
    records = [Record("x", str(tmp_path / "x.avi"), 0)]
    with pytest.raises(UserError, match="train.list: a list has the suffix .txt or .csv"):
        write_list(records, CLASSES, tmp_path / "train.list")
    (tmp_path / "classes.txt").write_text("swim\n")
    with pytest.raises(UserError, match="classes.txt has other classes"):
        write_list(records, CLASSES, tmp_path / "train.txt")
    (tmp_path / "train.csv").write_text("")
    with pytest.raises(UserError, match="train.csv exists, and a folder has one list of a name"):
        write_list(records, CLASSES, tmp_path / "train.txt")
    with pytest.raises(UserError, match="torchvision's data sets are arrays"):
        write_list([Record("x", "torchvision:A:train:0:/", 0)], CLASSES, tmp_path / "test.txt")
    with pytest.raises(UserError, match="needs one label per video"):
        write_list([Record("x", "/x.avi", -1, labels=(0,))], CLASSES, tmp_path / "test.txt")
