from pathlib import Path

import pytest

from tests.helpers import SHARED, counting_video, tiny_ucf101
from vidrobust.data import (
    class_folder,
    hmdb51,
    kinetics,
    path_label_list,
    ucf101,
    video_folder,
)
from vidrobust.utils.errors import UserError


def test_ucf101_labels_are_ranks_and_test_lists_use_the_folder(ucf):
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
    assert (
        record.path.endswith("HandstandPushups/v_HandStandPushups_g01_c01.avi")
        and record.label == 0
    )


def test_ucf101_mistakes_name_the_line(tmp_path):
    root = tiny_ucf101(tmp_path)
    train = root / "ucfTrainTestlist/trainlist01.txt"
    for text, message in {
        "Alpha/nothing.avi 3\n": r"line 1: Alpha/nothing.avi is not under",
        "Alpha/v_Alpha_g01_c01.avi 2\n": (
            r"line 1: label 2 is not Alpha's; classInd.txt says 3 \(its ids start at 1\)"
        ),
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


def test_list_files_may_have_absolute_paths_and_class_names(tmp_path):
    path = counting_video(tmp_path / "b.avi", 5)
    (tmp_path / "train.txt").write_text(f"{path} 0\n")
    (tmp_path / "test.txt").write_text(f"{path} 1\n")
    (tmp_path / "classes.txt").write_text("run\njump\n")
    (record,), classes = path_label_list(tmp_path, "test", 1)
    assert record.path == str(path) and classes == ["run", "jump"] and record.label == 1


def test_a_test_list_with_names_of_classes_needs_no_training_list(tmp_path):
    counting_video(tmp_path / "b.avi", 5)
    (tmp_path / "test.txt").write_text("b.avi 1\n")
    with pytest.raises(UserError, match=r"no train.csv.txt in"):
        path_label_list(tmp_path, "test", 1)
    (tmp_path / "classes.txt").write_text("run\njump\n")
    (record,), classes = path_label_list(tmp_path, "test", 1)
    assert (record.label, classes) == (1, ["run", "jump"])
    with pytest.raises(UserError, match=r"no train.csv.txt in"):
        path_label_list(tmp_path, "train", 1)
    (tmp_path / "test.txt").write_text("b.avi 2\n")
    with pytest.raises(UserError, match=r"test.txt, line 1: label 2 is out of range"):
        path_label_list(tmp_path, "test", 1)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            "b.avi 1\nb.avi 2\n",
            "b.avi 1\n",
            "labels look 1-based .smallest 1, largest 2.; subtract 1",
        ),
        ("b.avi 0\n", "b.avi 4\n", "test.txt, line 1: label 4 is out of range 0..0"),
        ("b.avi 0\n", "b.avi -2\n", "label -2 is out of range"),
        (
            "b.avi -2\nb.avi 1\n",
            "b.avi 0\n",
            "train.txt, line 1: label -2 is out of range: classes are numbers from 0",
        ),
        ("b.avi 0\n", "c.avi 0\n", "test.txt, line 1: c.avi is not under"),
        ("b.avi 0\n", "/nowhere/c.avi 0\n", "/nowhere/c.avi is not under"),
        ("b.avi 0\n", "b.avi\n", "expected a path and an integer label"),
        ("", "b.avi 0\n", "lists no video"),
    ],
)
def test_mistakes_in_lists_are_refused_by_line(tmp_path, train, test, message):
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 A\n1 B\n", "line 2: '1 B' repeats"),
        ("1 A\n2 a\n", "repeats an id or a name"),
        ("", "lists no class"),
        ("² A\n", "expected `id ClassName`"),
        ("A 1\n", "expected `id ClassName`"),
    ],
)
def test_wrong_class_lists_are_refused(tmp_path, text, message):
    root = tiny_ucf101(tmp_path)
    (root / "ucfTrainTestlist/classInd.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        ucf101(root, "train", 1)


def test_files_left_out_of_a_folder_are_reported(tmp_path, caplog):
    for split in ("train", "test"):
        counting_video(tmp_path / split / "a" / "x.avi", 5)
    (tmp_path / "train/a/x.swf").touch()
    (tmp_path / "train/.cache").mkdir()
    records, classes = video_folder(tmp_path, "train", 1)
    assert classes == ["a"] and len(records) == 1 and "x.swf" in caplog.text


def _touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_ucf101_groups_are_the_sources(ucf):
    records, _ = ucf101(ucf, "train", 1)
    assert [r.group for r in records[:2]] == ["v_alpha_g01", "v_alpha_g02"]


def _tiny_hmdb(root, top="hmdb51_org"):
    names = [
        "Film_(1)_run_f_cm_np1_ba_bad_#0.avi",
        "a&b[c]!_run_u_nm_np1_fr_goo_1.avi",
        "run_run_u_nm_np1_2.avi",
    ]
    for name in names:
        _touch(root / top / "run" / name)
    _touch(root / top / "jump" / "Film_(1)_jump_f_cm_np1_ba_bad_3.avi")
    lists = root / "testTrainMulti_7030_splits"
    lists.mkdir(parents=True)
    (lists / "run_test_split1.txt").write_text(
        "".join(f"{n} {tag} \n" for n, tag in zip(names, (1, 2, 0), strict=True))
    )
    (lists / "jump_test_split1.txt").write_text("Film_(1)_jump_f_cm_np1_ba_bad_3.avi 1 \n")
    return names


def test_hmdb51_reads_tags_one_and_two_and_any_character(tmp_path):
    names = _tiny_hmdb(tmp_path)
    train, classes = hmdb51(tmp_path, "train", 1)
    test, _ = hmdb51(tmp_path, "test", 1)
    assert classes == ["jump", "run"]
    assert [(r.uid, r.label) for r in train] == [
        ("jump/Film_(1)_jump_f_cm_np1_ba_bad_3.avi", 0),
        (f"run/{names[0]}", 1),
    ]
    assert [(r.uid, r.label) for r in test] == [(f"run/{names[1]}", 1)]
    assert {r.group for r in train} == {"Film_(1)"}  # one film, two classes
    with pytest.raises(UserError, match="no .*_test_split2.txt"):
        hmdb51(tmp_path, "train", 2)


@pytest.mark.parametrize("tag", ["3", "x", ""])
def test_hmdb51_mistakes_name_the_line(tmp_path, tag):
    names = _tiny_hmdb(tmp_path)
    (tmp_path / "testTrainMulti_7030_splits/run_test_split1.txt").write_text(
        f"{names[0]} 1\n{names[1]} {tag}\n"
    )
    with pytest.raises(UserError, match="run_test_split1.txt, line 2"):
        hmdb51(tmp_path, "train", 1)


@pytest.mark.skipif(not (SHARED / "splits").is_dir(), reason="needs ../shared/data/splits")
def test_the_official_lists_of_hmdb51_have_the_official_counts(tmp_path):
    lists = SHARED / "splits/hmdb51"
    for path in lists.glob("*_test_split1.txt"):  # each lists every video of its class
        for line in path.read_text().splitlines():
            if line.strip():
                _touch(
                    tmp_path
                    / "videos"
                    / path.name.removesuffix("_test_split1.txt")
                    / line.rsplit(maxsplit=1)[0]
                )
    (tmp_path / "splits").symlink_to(lists)
    for fold in (1, 2, 3):
        (train, classes), (test, _) = (
            hmdb51(tmp_path, "train", fold),
            hmdb51(tmp_path, "test", fold),
        )
        assert (len(train), len(test), len(classes)) == (3570, 1530, 51)
        assert [sum(r.label == c for r in train) for c in range(51)] == [70] * 51
        assert not {r.uid for r in train} & {r.uid for r in test}


def _kinetics(root, train, val):
    header = "label,youtube_id,time_start,time_end,split\n"
    root.mkdir(parents=True, exist_ok=True)
    (root / "train.csv").write_text(header + "".join(f"{row},train\n" for row in train))
    (root / "validate.csv").write_text(header + "".join(f"{row},validate\n" for row in val))


def test_kinetics_finds_downloads_by_official_names_and_counts_missing_ones(tmp_path, caplog):
    train = ["tap dancing,-_a,0,10", '"throwing, discus",b_c,35.0,45.0', "tap dancing,gone0,1,11"]
    _kinetics(tmp_path, train, ["tap dancing,vvv,7,17"])
    _touch(tmp_path / "train/tap dancing/-_a_000000_000010.mp4")
    _touch(tmp_path / "train/throwing discus/b_c_000035_000045.mkv")
    _touch(tmp_path / "validate/vvv.mp4")  # by its id alone
    records, classes = kinetics(tmp_path, "train", 1)
    assert classes == ["tap dancing", "throwing, discus"]
    assert [(r.uid, r.label, r.group) for r in records] == [
        ("tap dancing/-_a_000000_000010.mp4", 0, "-_a"),
        ("throwing discus/b_c_000035_000045.mkv", 1, "b_c"),
    ]
    assert "1 of 3 videos are not under" in caplog.text and "gone0_000001_000011" in caplog.text
    (record,), _ = kinetics(tmp_path, "test", 1)
    assert record.uid == "vvv.mp4" and record.label == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("tap,a", "line 2: times and label"),
        ("tap,a,x,y", "line 2: times and label"),
        ("tap,a,1,2", "lists no video"),
    ],
)
def test_mistakes_in_kinetics_lists_are_refused(tmp_path, row, message):
    _kinetics(tmp_path, [row], [])
    with pytest.raises(UserError, match=message):
        kinetics(tmp_path, "train", 1)


def test_kinetics_refuses_other_tables_and_unknown_classes(tmp_path):
    _kinetics(tmp_path, ["tap,a,1,2"], ["swim,b,1,2"])
    with pytest.raises(
        UserError, match="validate.csv, line 2: class 'swim' is not in the training list"
    ):
        kinetics(tmp_path, "test", 1)
    (tmp_path / "train.csv").write_text("video,label\n")
    with pytest.raises(UserError, match="an official list has the columns label, time_end"):
        kinetics(tmp_path, "train", 1)


def test_lists_may_leave_videos_unlabelled(tmp_path):
    counting_video(tmp_path / "b.avi", 5)
    (tmp_path / "train.txt").write_text("b.avi -1\n")
    (tmp_path / "test.txt").write_text("b.avi -1\n")
    (record,), classes = path_label_list(tmp_path, "train", 1)
    assert record.label == -1 and classes == []


def test_hidden_files_and_dangling_links_are_skipped_and_links_are_followed(tmp_path, caplog):
    for split in ("train", "test"):
        counting_video(tmp_path / split / "a" / "x.avi", 5)
        counting_video(tmp_path / "pool" / split / "y.avi", 5)
        (tmp_path / split / "b").symlink_to(tmp_path / "pool" / split)
    (tmp_path / "train/a/._x.avi").touch()  # macOS's
    (tmp_path / "train/a/.partial-x.avi").touch()
    (tmp_path / "train/a/gone.avi").symlink_to(tmp_path / "nothing")
    (tmp_path / "train/a/again").symlink_to(tmp_path / "train/a")  # a circle
    records, classes = video_folder(tmp_path, "train", 1)
    assert [r.uid for r in records] == ["a/x.avi", "b/y.avi"] and classes == ["a", "b"]
    assert "1 files are left out" in caplog.text and "gone.avi" in caplog.text


def test_a_folder_that_two_links_lead_to_is_read_by_both_names(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "a" / "deep").mkdir(parents=True)
        counting_video(tmp_path / "pool" / "y.avi", 5)
        for name in ("one", "deep/two"):
            (tmp_path / split / "a" / name).symlink_to(tmp_path / "pool")
    records, _ = video_folder(tmp_path, "train", 1)
    assert [r.uid for r in records] == ["a/deep/two/y.avi", "a/one/y.avi"]


def test_kinetics_follows_links_to_folders(tmp_path):
    _kinetics(tmp_path / "k", ["tap,a,1,2"], [])
    _touch(tmp_path / "disk/tap/a_000001_000002.mp4")
    (tmp_path / "k/train").symlink_to(tmp_path / "disk")
    (record,), _ = kinetics(tmp_path / "k", "train", 1)
    assert record.uid == "tap/a_000001_000002.mp4"


def test_lines_of_videomae_without_a_label_are_read(tmp_path):
    _touch(tmp_path / "a b.avi")
    _touch(tmp_path / "c 0")
    for name in ("train.txt", "test.txt"):
        (tmp_path / name).write_text("a b.avi 0 -1\nc 0 -1\n")
    records, _ = path_label_list(tmp_path, "train", 1)
    assert [(r.uid, r.label) for r in records] == [("a b.avi", -1), ("c 0", -1)]


@pytest.mark.parametrize("other", ["./a.avi", "b/../a.avi"])
def test_a_file_under_two_spellings_is_listed_twice(tmp_path, other):
    _touch(tmp_path / "a.avi")
    _touch(tmp_path / "b/c.avi")
    for name in ("train.txt", "test.txt"):
        (tmp_path / name).write_text(f"a.avi 0\n{other} 1\n")
    with pytest.raises(UserError, match="is listed twice"):
        path_label_list(tmp_path, "train", 1)


def test_an_absolute_path_and_a_relative_one_are_the_same_file(tmp_path, monkeypatch):
    """The root is relative, as on a command line."""
    _touch(tmp_path / "a.avi")
    monkeypatch.chdir(tmp_path)
    Path("train.txt").write_text(f"a.avi 0\n{tmp_path / 'a.avi'} 1\n")
    with pytest.raises(UserError, match="is listed twice"):
        path_label_list(Path("."), "train", 1)


def test_two_lists_with_the_same_name_are_refused(tmp_path):
    _touch(tmp_path / "a.avi")
    for name in ("train.txt", "train.csv", "test.txt"):
        (tmp_path / name).write_text("a.avi 0\n")
    with pytest.raises(UserError, match=r"train.csv and train.txt; remove or rename one"):
        path_label_list(tmp_path, "train", 1)


def test_classes_with_the_same_name_are_refused(tmp_path):
    _touch(tmp_path / "a.avi")
    (tmp_path / "train.txt").write_text("a.avi 0\n")
    (tmp_path / "classes.txt").write_text("run\nwalk\nrun\n")
    with pytest.raises(UserError, match=r"classes.txt: class 'run' stands 2 times"):
        path_label_list(tmp_path, "train", 1)


def test_spaces_around_names_are_removed(tmp_path):
    root = tiny_ucf101(tmp_path / "ucf")
    path = root / "ucfTrainTestlist/trainlist01.txt"
    records, _ = ucf101(root, "train", 1)
    path.write_text(path.read_text().replace(" 1\n", "  1\n"))
    assert ucf101(root, "train", 1)[0] == records
    _kinetics(tmp_path / "k", ["x,a,0,10", " x,b,0,10"], ["x,c,0,10"])
    for name in "ab":
        _touch(tmp_path / f"k/train/{name}_000000_000010.mp4")
    records, classes = kinetics(tmp_path / "k", "train", 1)
    assert classes == ["x"] and [record.label for record in records] == [0, 0]


def test_a_link_to_nothing_is_a_missing_file(tmp_path):
    (tmp_path / "a.avi").symlink_to(tmp_path / "nothing")
    (tmp_path / "train.txt").write_text("a.avi 0\n")
    with pytest.raises(UserError, match="line 1: a.avi is not under"):
        path_label_list(tmp_path, "train", 1)


def test_folders_of_classes_are_one_list(tmp_path, caplog):
    for name in ("b/x.png", "b/deep/y.avi", "a/z.jpg", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    records, classes = class_folder(tmp_path, "train", 1)
    assert classes == ["a", "b"] and [(r.uid, r.label) for r in records] == [
        ("a/z.jpg", 0),
        ("b/deep/y.avi", 1),
        ("b/x.png", 1),
    ]
    assert "1 files are left out, first" in caplog.text and "notes.txt" in caplog.text
    with pytest.raises(UserError, match="has one list; data.validation"):
        class_folder(tmp_path, "test", 1)
