import pytest

from tests.helpers import SHARED, counting_video, tiny_ucf101
from vidrobust.config import Data
from vidrobust.data import build_records, path_label_list, records_sha, ucf101, video_folder
from vidrobust.errors import UserError


def test_ucf101_labels_are_ranks_and_test_lists_take_them_from_the_folder(ucf):
    train, classes = ucf101(ucf, "train", 1)
    test, _ = ucf101(ucf, "test", 1)
    assert classes == ["Alpha", "Beta"]  # ids 3 and 6
    assert [r.label for r in train] == [0] * 4 + [1] * 4 and [r.label for r in test] == [0, 0, 1, 1]
    assert train[0].uid == "Alpha/v_Alpha_g01_c01.avi" and train[0].path.endswith(train[0].uid)


def test_ucf101_ignores_case_as_handstand_pushups_needs(tmp_path):
    root = tiny_ucf101(tmp_path, ("HandstandPushups",), train=1, test=1)
    lists = root / "ucfTrainTestlist"
    (root / "videos/HandstandPushups/v_HandstandPushups_g01_c01.avi").rename(
        root / "videos/HandstandPushups/v_HandStandPushups_g01_c01.avi"
    )
    (lists / "trainlist01.txt").write_text("HandStandPushups/v_HandstandPushups_g01_c01.avi 3\n")
    (record,), _ = ucf101(root, "train", 1)
    assert record.path.endswith("HandstandPushups/v_HandStandPushups_g01_c01.avi") and record.label == 0


def test_ucf101_mistakes_name_the_line(tmp_path):
    root = tiny_ucf101(tmp_path)
    train = root / "ucfTrainTestlist/trainlist01.txt"
    for text, message in {
        "Alpha/nothing.avi 3\n": r"line 1: Alpha/nothing.avi is not under",
        "Alpha/v_Alpha_g01_c01.avi 2\n": r"line 1: label 2 is not Alpha's; classInd.txt says 3 \(its ids start at 1\)",
        "Gamma/v.avi 3\n": r"line 1: class 'Gamma' is not in",
        "\n": "lists no video",
        "Alpha/v_Alpha_g01_c01.avi 3\n" * 2: "listed twice",
    }.items():
        train.write_text(text)
        with pytest.raises(UserError, match=message):
            ucf101(root, "train", 1)
    with pytest.raises(UserError, match="data.fold=3"):
        ucf101(root, "train", 3)


def test_missing_files_are_counted_in_one_message(tmp_path):
    root = tiny_ucf101(tmp_path)
    for path in (root / "videos/Alpha").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"and 3 more\); add the file or remove the line"):
        ucf101(root, "train", 1)


@pytest.mark.skipif(not (SHARED / "splits").is_dir(), reason="needs ../shared/data/splits")
def test_the_official_lists_have_the_official_counts(tmp_path):
    for fold, counts in {1: (9537, 3783), 2: (9586, 3734), 3: (9624, 3696)}.items():
        for split, count in zip(("train", "test"), counts, strict=True):
            lines = (SHARED / f"splits/ucf101/{split}list{fold:02d}.txt").read_text().split("\n")
            for line in filter(None, (line.strip() for line in lines)):
                path = tmp_path / "videos" / line.split()[0]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            lists = tmp_path / "ucfTrainTestlist"
            lists.mkdir(exist_ok=True)
            for name in ("classInd.txt", f"{split}list{fold:02d}.txt"):
                (lists / name).write_text((SHARED / "splits/ucf101" / name).read_text())
            records, classes = ucf101(tmp_path, split, fold)
            assert len(records) == count and len(classes) == 101
            assert {r.label for r in records} == set(range(101))


@pytest.mark.parametrize("separator", [" ", ",", "\t", ", "])
def test_list_files_split_from_the_right(tmp_path, separator):
    counting_video(tmp_path / "a dir" / "clip, one 7.avi", 5)
    counting_video(tmp_path / "b.avi", 5)
    lines = f"a dir/clip, one 7.avi{separator}0\nb.avi{separator}1\n"
    (tmp_path / "train.csv").write_text(lines)
    (tmp_path / "val.txt").write_text(lines)
    records, classes = path_label_list(tmp_path, "train", 1)
    assert [(r.uid, r.label) for r in records] == [("a dir/clip, one 7.avi", 0), ("b.avi", 1)]
    assert classes == ["0", "1"]
    assert path_label_list(tmp_path, "test", 1)[0] == records


def test_list_files_take_absolute_paths_and_class_names(tmp_path):
    path = counting_video(tmp_path / "b.avi", 5)
    (tmp_path / "train.txt").write_text(f"{path} 0\n")
    (tmp_path / "test.txt").write_text(f"{path} 1\n")
    (tmp_path / "classes.txt").write_text("run\njump\n")
    (record,), classes = path_label_list(tmp_path, "test", 1)
    assert record.path == str(path) and classes == ["run", "jump"] and record.label == 1


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("b.avi 1\nb.avi 2\n", "b.avi 1\n", "labels look 1-based .smallest 1, largest 2.; subtract 1"),
        ("b.avi 0\n", "b.avi 4\n", "test.txt, line 1: label 4 is out of range 0..0"),
        ("b.avi 0\n", "b.avi -2\n", "label -2 is out of range"),
        ("b.avi 0\n", "c.avi 0\n", "test.txt, line 1: c.avi is not under"),
        ("b.avi 0\n", "/nowhere/c.avi 0\n", "/nowhere/c.avi is not under"),
        ("b.avi 0\n", "b.avi\n", "expected a path and an integer label"),
        ("", "b.avi 0\n", "lists no video"),
    ],
)
def test_list_mistakes(tmp_path, train, test, message):
    counting_video(tmp_path / "b.avi", 5)
    (tmp_path / "train.txt").write_text(train)
    (tmp_path / "test.txt").write_text(test)
    with pytest.raises(UserError, match=message):
        path_label_list(tmp_path, "test", 1)


def test_a_folder_per_class(tmp_path):
    for split in ("train", "val"):
        for name in ("run (fast)", "jump#1"):
            counting_video(tmp_path / split / name / "x [1] & y.avi", 5)
    (tmp_path / "train/run (fast)/notes.txt").write_text("no video")
    records, classes = video_folder(tmp_path, "train", 1)
    assert classes == ["jump#1", "run (fast)"] and [r.label for r in records] == [0, 1]
    assert len(video_folder(tmp_path, "test", 1)[0]) == 2
    counting_video(tmp_path / "val/unknown/x.avi", 5)
    with pytest.raises(UserError, match="'unknown' has no folder"):
        video_folder(tmp_path, "test", 1)


def test_a_missing_root_and_an_unknown_format_are_named(tmp_path):
    with pytest.raises(UserError, match="no data root .*nowhere"):
        build_records(Data(name="ucf101", root=str(tmp_path / "nowhere")), "train")
    with pytest.raises(UserError, match="data.name: unknown name 'ucf-101'; did you mean 'ucf101'"):
        build_records(Data(name="ucf-101", root=str(tmp_path)), "train")


def test_the_sha_depends_on_order_and_labels(ucf):
    records, _ = ucf101(ucf, "train", 1)
    assert records_sha(records) == records_sha(list(records)) != records_sha(records[::-1])


@pytest.mark.parametrize(
    ("text", "message"),
    [("1 A\n1 B\n", "line 2: '1 B' repeats"), ("1 A\n2 a\n", "repeats an id or a name"), ("", "lists no class"),
     ("² A\n", "expected `id ClassName`"), ("A 1\n", "expected `id ClassName`")],
)  # fmt: skip
def test_class_lists_that_are_wrong(tmp_path, text, message):
    root = tiny_ucf101(tmp_path)
    (root / "ucfTrainTestlist/classInd.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        ucf101(root, "train", 1)


def test_a_folder_says_what_it_leaves_out(tmp_path, caplog):
    for split in ("train", "test"):
        counting_video(tmp_path / split / "a" / "x.avi", 5)
    (tmp_path / "train/a/x.flv").touch()
    (tmp_path / "train/.cache").mkdir()
    records, classes = video_folder(tmp_path, "train", 1)
    assert classes == ["a"] and len(records) == 1 and "x.flv" in caplog.text
