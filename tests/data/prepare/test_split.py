import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import tool
from vidrobust.config import DataConfig
from vidrobust.data import Record, build_records
from vidrobust.data.prepare.split import (
    LISTS,
    Split,
    parse_fractions,
    rounded_counts,
    split_records,
    write_split,
)
from vidrobust.utils.errors import UserError

THIRDS = Split((0.6, 0.2, 0.2))


def _touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def _videos(*names):
    """Return records of names `<class>/<file>`, and the classes."""
    classes = sorted({name.split("/")[0] for name in names})
    return [
        Record(name, f"/v/{name}", classes.index(name.split("/")[0])) for name in names
    ], classes


def _plain(**counts):
    return _videos(*(f"{name}/{i:03}.avi" for name, count in counts.items() for i in range(count)))


def _counts(parts, label):
    return [sum(record.label == label for record in part) for part in parts]


# ------------------------------------------------------------------ fractions


@pytest.mark.parametrize(
    ("count", "fractions", "expected"),
    [
        (10, (0.7, 0.1, 0.2), [7, 1, 2]),
        (5, (0.8, 0.1, 0.1), [3, 1, 1]),  # 4, 0.5, 0.5, at least one each
        (3, (0.8, 0.1, 0.1), [1, 1, 1]),
        (100, (0.29, 0.0, 0.71), [29, 0, 71]),
        (7, (0.5, 0.0, 0.5), [4, 0, 3]),
        (1, (0.5, 0.0, 0.5), [1, 0, 0]),
    ],
)
def test_counts_are_rounded_by_largest_remainders(count, fractions, expected):
    assert rounded_counts(count, fractions) == expected


@pytest.mark.parametrize(
    "text", ["0.7,0.1", "a,b,c", "0.7,0.1,0.1", "1,0,0", "0,0.5,0.5", "nan,0,1", "1.2,-.1,-.1", ""]
)
def test_wrong_fractions_are_refused(text):
    with pytest.raises(UserError, match="--fractions .*: must be the fractions of train, val"):
        parse_fractions(text)


_FRACTIONS = st.sampled_from(
    [(0.8, 0.1, 0.1), (0.7, 0.1, 0.2), (0.5, 0.0, 0.5), (0.6, 0.4, 0.0), (0.34, 0.33, 0.33)]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(3, 40), min_size=1, max_size=4), _FRACTIONS, st.integers(0, 9))
def test_single_files_have_their_fractions_of_every_class(counts, fractions, seed):
    records, classes = _plain(**{f"c{i}": count for i, count in enumerate(counts)})
    parts = split_records(records, classes, Split(fractions, seed))
    assert sorted(r.uid for part in parts for r in part) == sorted(r.uid for r in records)
    for label, count in enumerate(counts):
        for got, fraction in zip(_counts(parts, label), fractions, strict=True):
            near = abs(got - fraction * count) < 1
            assert near or got == 1 or min(counts) < 10, "at least one may cost another list one"
            assert (got > 0) == (fraction > 0)


# ------------------------------------------------------------------ sources


@st.composite
def _grouped(draw):
    """Videos of several sources per class, sometimes of one source in several classes."""
    names = []
    for c in range(draw(st.integers(1, 3))):
        sizes = draw(st.lists(st.integers(1, 9), min_size=3, max_size=8))
        for g, size in enumerate(sizes):
            source = f"s{g}" if draw(st.booleans()) else f"c{c}s{g}"
            names += [f"c{c}/v_{source}_{c}{g}{i}.avi" for i in range(size)]
    return names


@settings(max_examples=150, deadline=None)
@given(_grouped(), _FRACTIONS, st.integers(0, 9), st.randoms())
def test_sources_are_never_broken_up_and_the_order_does_not_matter(names, fractions, seed, rnd):
    records, classes = _videos(*names)
    options = Split(fractions, seed, "v_([a-z0-9]+)_")
    try:
        parts = split_records(records, classes, options)
    except UserError as error:
        assert "has no video in the list" in str(error) or "fewer sources" in str(error)
        return
    assert sorted(r.uid for part in parts for r in part) == sorted(names)
    places = {}
    for index, part in enumerate(parts):
        for record in part:
            assert places.setdefault(record.group, index) == index
        for label in range(len(classes)):
            assert (_counts(parts, label)[index] > 0) == (fractions[index] > 0)
    shuffled = list(records)
    rnd.shuffle(shuffled)
    assert split_records(shuffled, classes, options) == parts


@settings(max_examples=100, deadline=None)
@given(st.integers(3, 30), st.integers(1, 6), _FRACTIONS, st.integers(0, 9))
def test_sources_of_one_size_miss_the_fractions_by_less_than_two_sources(
    sources, size, fractions, seed
):
    names = [f"c/s{g}_{i}.avi" for g in range(sources) for i in range(size)]
    records, classes = _videos(*names)
    parts = split_records(records, classes, Split(fractions, seed, "(s[0-9]+)_"))
    for got, fraction in zip(_counts(parts, 0), fractions, strict=True):
        at_least_one = got == size or sources < 10
        assert abs(got - fraction * sources * size) < 2 * size or at_least_one


def test_sources_of_ucf101_like_sizes_are_near_their_fractions():
    rng = random.Random(0)
    names = [
        f"c{c}/v_c{c}_g{g:02}_c{i}.avi"
        for c in range(5)
        for g in range(25)
        for i in range(rng.randint(4, 7))
    ]
    records, classes = _videos(*names)
    parts = split_records(records, classes, Split((0.7, 0.1, 0.2), 0, "v_(c[0-9]+_g[0-9]+)_"))
    for label in range(5):
        total = sum(r.label == label for r in records)
        for got, fraction in zip(_counts(parts, label), (0.7, 0.1, 0.2), strict=True):
            assert abs(got - fraction * total) <= 4


def test_a_known_split():
    """A known answer: another order would silently change published lists."""
    records, classes = _plain(a=5)
    parts = split_records(records, classes, THIRDS)
    assert [[r.uid for r in part] for part in parts] == [
        ["a/001.avi", "a/002.avi", "a/004.avi"],
        ["a/000.avi"],
        ["a/003.avi"],
    ]


def test_another_seed_gives_other_lists():
    records, classes = _plain(a=20, b=20)
    parts = [split_records(records, classes, Split((0.5, 0.0, 0.5), seed)) for seed in range(2)]
    assert parts[0] != parts[1]


def test_classes_with_too_few_sources_are_named():
    records, classes = _plain(a=9, b=2, c=1)
    message = (
        r"fewer sources than the 3 lists: b \(2\), c \(1\); add videos, remove the classes, or"
    )
    with pytest.raises(UserError, match=message):
        split_records(records, classes, THIRDS)
    records, classes = _videos(*(f"a/v_g01_{i}.avi" for i in range(9)))
    with pytest.raises(UserError, match=r"fewer sources than the 3 lists: a \(1\)"):
        split_records(records, classes, Split((0.6, 0.2, 0.2), 0, "v_(g[0-9]+)_"))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("v_[0-9]+", "--group v_.*: has 0 groups; put parentheses around"),
        ("(a)(b)", "has 2 groups"),
        ("(", "not a regular expression"),
        ("(g[0-9])", "does not match 9 of 9 files, first a/000.avi"),
        ("(x)?a", "does not match 9 of 9 files"),
    ],
)
def test_wrong_patterns_are_refused(pattern, message):
    records, classes = _plain(a=9)
    with pytest.raises(UserError, match=message):
        split_records(records, classes, Split((0.6, 0.2, 0.2), 0, pattern))


# ------------------------------------------------------------------ files


def _folder(root, suffix=".avi"):
    for name in ("run fast", "jump"):
        for i in range(10):
            _touch(root / name / f"v_g{i // 2}_{i}{suffix}")
    return root


def _split(root, *words):
    return tool(
        "prepare", "split", "data.name=class_folder", f"data.root={root}", *words, cwd=root.parent
    )


@pytest.mark.parametrize("suffix", [".avi", ".jpg"])
def test_the_lists_of_the_command_are_read_by_the_list_format(tmp_path, suffix):
    root = _folder(tmp_path / "videos", suffix)
    done = _split(root, "--fractions", "0.6,0.2,0.2", "--group", "(g[0-9])_")
    assert done.returncode == 0, done.stderr
    assert "2 classes, 20 files: train 12, val 4, test 4" in done.stderr
    cfg = DataConfig(name="list", root=str(root))
    (train, classes), (test, _) = build_records(cfg, "train"), build_records(cfg, "test")
    assert classes == ["jump", "run fast"]
    assert Counter(r.label for r in train) == {0: 6, 1: 6} and len(test) == 4
    assert not {r.uid for r in train} & {r.uid for r in test}
    val = (root / "val.txt").read_text().splitlines()
    assert len(val) == 4 and all(line.split("/")[0] in classes for line in val)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    root = _folder(tmp_path / "videos")
    contents = []
    for seed in (0, 0, 1):
        output = tmp_path / f"lists{len(contents)}"
        done = _split(root, f"seed={seed}", "--output", output)
        assert done.returncode == 0, done.stderr
        contents.append([(output / f"{name}.txt").read_bytes() for name in LISTS])
    assert contents[0] == contents[1] != contents[2]
    assert contents[0][0].startswith(str(root / "jump").encode()), "absolute in another folder"
    records, _ = build_records(DataConfig(name="list", root=str(tmp_path / "lists0")), "train")
    assert len(records) == 16


def test_lists_are_replaced_only_if_asked_for(tmp_path):
    root = _folder(tmp_path / "videos")
    assert _split(root).returncode == 0
    before = (root / "train.txt").read_bytes()
    done = _split(root, "seed=1")
    assert done.returncode == 1 and "train.txt exists; give another --output" in done.stderr
    assert (root / "train.txt").read_bytes() == before
    done = _split(root, "seed=1", "--overwrite", "--fractions", "0.8,0,0.2")
    assert done.returncode == 0, done.stderr
    assert (root / "train.txt").read_bytes() != before and not (root / "val.txt").exists()


def test_a_table_of_another_program_is_never_deleted(tmp_path):
    records, classes = _plain(a=5)
    (tmp_path / "val.csv").write_text("x")
    parts = split_records(records, classes, THIRDS)
    with pytest.raises(UserError, match="val.csv exists, and a folder has one list of a name"):
        write_split(parts, classes, tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["val.csv"]


def test_a_name_that_no_list_can_hold_leaves_the_lists_as_they_are(tmp_path):
    (tmp_path / "train.txt").write_text("old\n")
    records, classes = _videos(*(f"a/{i}\n.avi" for i in range(5)))
    parts = split_records(records, classes, THIRDS)
    with pytest.raises(UserError, match="a list cannot hold this name"):
        write_split(parts, classes, tmp_path, overwrite=True)
    assert (tmp_path / "train.txt").read_text() == "old\n"


def test_data_sets_that_are_split_already_are_refused(tmp_path, ucf):
    for name in ("train", "val"):
        _touch(tmp_path / "done" / name / "a/x.avi")
    done = _split(tmp_path / "done")
    assert done.returncode == 1 and "its folders are lists, not classes (train, val)" in done.stderr
    done = tool("prepare", "split", "data.name=ucf101", f"data.root={ucf}", cwd=tmp_path)
    assert done.returncode == 1 and "data.name=ucf101: has lists of its own" in done.stderr
