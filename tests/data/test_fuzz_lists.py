"""Lists as people and programs write them: read correctly, or refused by line."""

import time
import unicodedata

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vidrobust.data import frame_list, hmdb51, kinetics, path_label_list, ucf101, video_folder
from vidrobust.utils.errors import UserError

FUZZ = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=400,
    suppress_health_check=list(HealthCheck),
)
SECONDS = 1.0
NAMES = [
    "a.mp4",
    "b.mp4",
    "a, one.mp4",
    "clip 7",
    "x/a.mp4",
    "caf\u00e9.mp4",
    "a\u2028x.mp4",
    "a\x85b.mp4",
    "a\x0cb.mp4",
    "\u3000wide.mp4",
    "a:b.mp4",
    "#1.mp4",
    "it's.mp4",
    "-1.mp4",
    "0",
    "[x] & (y).mp4",
    "\u00e9" * 120 + ".mp4",
]


def _touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def _parsed_or_refused(parser, root, split="train"):
    """Return (records, ""), or ([], the message of a refusal), one short printable line."""
    began = time.process_time()
    try:
        records, classes = parser(root, split, 1)
    except UserError as error:
        message = str(error)
        assert message.isprintable() and 0 < len(message) <= 1500, message
        assert str(root) in message
        records_found = []
    else:
        records_found, message = records, ""
        assert all(-1 <= record.label < len(classes) for record in records)
        assert len({record.uid for record in records}) == len(records)
    assert time.process_time() - began < SECONDS
    return records_found, message


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("lists")
    for name in NAMES:
        _touch(root / name)
    _touch(root / "ucfTrainTestlist/classInd.txt")
    _touch(root / "videos/Run/v_Run_g01_c01.avi")
    _touch(root / "videos/run/film_run_1.avi")
    return root


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"a.mp4 1699999999\n", "line 1: label 1699999999 is too large for a list of 1 lines"),
        (b"b.mp4 0\na.mp4 10000\n", "line 2: label 10000 is too large for a list of 2 lines"),
        (b"a.mp4 " + b"9" * 5000, "line 1: expected a path and an integer label"),
        (b"a.mp4 0 300\nb.mp4 0 250\n", "line 1: three columns, 'a.mp4', 0 and 300"),
        (b"a.mp4 100 0\n", "line 1: three columns, 'a.mp4', 100 and 0"),
        (b"a.mp4,100,0\n", "line 1: three columns, 'a.mp4', 100 and 0"),
        (b"a.mp4 0 1\n", "line 1: three columns, 'a.mp4', 0 and 1"),
        (b"nowhere.mp4 0 -1\n", "line 1: nowhere.mp4 is not under"),
        (b'"a, one.mp4",0\n', "its quotes are read as part of the name, write it without"),
        (b"'a.mp4' 0\n", "its quotes are read as part of the name, write it without"),
        (b"x\\a.mp4,0\n", "its backslashes are read as part of the name, write / between folders"),
        ("caf\u0065\u0301s.mp4 0\n".encode(), "its accents are decomposed (Unicode form NFD)"),
        (
            "cafe\u0301.mp4".encode(),
            "expected a path and an integer label from 0 (no header line), found 'cafe\u0301",
        ),
        ("cafe\u0301.mp4".encode(), "its accents are decomposed (Unicode form NFD)"),
        (
            b"a.mp4 0\ncaf\xe9.mp4 0\n",
            "train.txt, line 2: not a text file in UTF-8 (byte 0xe9); save",
        ),
        ("a.mp4 0\n".encode("utf-16"), "not UTF-8, but UTF-16; save the list as UTF-8"),
        ("a.mp4 0\n".encode("utf-16-le"), "line 1: not a text file (it contains a null character)"),
        ("a.mp4 \u0663\n".encode(), "line 1: expected a path and an integer label"),
        (b"a.mp4 0.5\n", "line 1: expected a path and an integer label"),
        (
            b"path,label\na.mp4,0\n",
            "line 1: expected a path and an integer label from 0 (no header line)",
        ),
        (b"# only\n# comments\n", "line 1: expected a path and an integer label"),
        (b"\n \t\r\n", "lists no video"),
        (b"", "lists no video"),
        (b"a" + b" " * 200_000 + b"b\n", "line 1: expected a path and an integer label"),
        (b"a/" * 100_000 + b"x 0\n", "line 1: a/a/a/"),
        (b"x" * 100_000 + b" 0\n", "line 1: xxx"),
        (b". 0\n", "line 1: . is not under"),
        (b"a.mp4 0\x1b[31m\n", "line 1: expected a path and an integer label"),
        (b"a.mp4 0\ra.mp4 0\r", "a.mp4 is listed twice"),
        (b"a.mp4 0 -2\n", "three columns"),
    ],
)
def test_bad_lists_found_by_fuzzing_are_refused_by_line(videos, text, reason):
    (videos / "train.txt").write_bytes(text)
    records, message = _parsed_or_refused(path_label_list, videos)
    assert not records and reason in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"\xef\xbb\xbfa.mp4 0\r\nb.mp4 1\r\n", [("a.mp4", 0), ("b.mp4", 1)]),
        (b"a.mp4 0\rb.mp4 1", [("a.mp4", 0), ("b.mp4", 1)]),
        (b"\t a.mp4\t0 \t\n\n", [("a.mp4", 0)]),
        ("a.mp4 0\u00a0\n".encode(), [("a.mp4", 0)]),
        ("a\u2028x.mp4 0\nb.mp4 1\n".encode(), [("a\u2028x.mp4", 0), ("b.mp4", 1)]),
        ("a\x85b.mp4,0\n".encode(), [("a\x85b.mp4", 0)]),
        (b"a\x0cb.mp4 0\n", [("a\x0cb.mp4", 0)]),
        ("\u3000wide.mp4 0\n".encode(), [("\u3000wide.mp4", 0)]),
        (b"a, one.mp4 , 0\n", [("a, one.mp4", 0)]),
        (b"clip 7 0\n", [("clip 7", 0)]),
        (b"a.mp4 0 -1\nb.mp4 0 -1\n", [("a.mp4", -1), ("b.mp4", -1)]),
        (b"0 -1\n", [("0", -1)]),
        (b"A.MP4 0\n", [("A.MP4", 0)]),
    ],
)
def test_unusual_lists_are_read_correctly(videos, text, expected):
    (videos / "train.txt").write_bytes(text)
    records, message = _parsed_or_refused(path_label_list, videos)
    assert [(record.uid, record.label) for record in records] == expected, message


def test_labels_may_be_as_large_as_the_list_or_the_number_of_named_classes(tmp_path):
    _touch(tmp_path / "a.mp4")
    (tmp_path / "train.txt").write_text("a.mp4 9999\n")
    assert len(path_label_list(tmp_path, "train", 1)[1]) == 10_000
    (tmp_path / "train.txt").write_text("a.mp4 20000\n")
    (tmp_path / "classes.txt").write_text("".join(f"class {i}\n" for i in range(20_001)))
    assert path_label_list(tmp_path, "train", 1)[0][0].label == 20_000
    (tmp_path / "classes.txt").write_text("")
    with pytest.raises(UserError, match="line 1: label 20000 is too large"):
        path_label_list(tmp_path, "train", 1)


def test_frame_lists_of_a_start_and_a_total_are_refused(tmp_path):
    for name in ("f1", "f2"):
        _touch(tmp_path / name / "img_1.jpg")
    (tmp_path / "train.txt").write_text("f1 1 58\nf2 1 29\n")
    with pytest.raises(
        UserError, match=r"line 1: 1 and 58 look like the first frame and the number of frames"
    ):
        frame_list(tmp_path, "train", 1)
    (tmp_path / "train.txt").write_text("f1 0 58\nf2 0 29\n")
    with pytest.raises(
        UserError, match=r"line 1: 0 and 58 look like the first frame and the number of frames"
    ):
        frame_list(tmp_path, "train", 1)
    (tmp_path / "train.txt").write_text("f1 1 0\nf2 1 29\n")  # clips of one frame, with labels
    assert [record.label for record in frame_list(tmp_path, "train", 1)[0]] == [0, 29]


@pytest.mark.parametrize(("on_disk", "listed"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_files_are_found_in_another_unicode_form_and_counted(tmp_path, caplog, on_disk, listed):
    names = ["\u00e9t\u00e9/\u00e0.mp4", "na\u00efve.mp4"]
    for name in names:
        _touch(tmp_path / unicodedata.normalize(on_disk, name))
    lines = [f"{unicodedata.normalize(listed, name)} 0\n" for name in names]
    (tmp_path / "train.txt").write_text("".join(lines), encoding="utf-8")
    records, _ = path_label_list(tmp_path, "train", 1)
    assert [record.uid for record in records] == [
        unicodedata.normalize(listed, name) for name in names
    ]
    assert all((tmp_path / record.path).is_file() for record in records)
    assert caplog.text.count("2 listed files have names of another Unicode form (NFC or NFD)") == 1


def test_an_ambiguous_name_is_refused(tmp_path):
    _touch(tmp_path / "A.mp4")
    _touch(tmp_path / "a.MP4")
    (tmp_path / "train.txt").write_text("a.mp4 0\n")
    with pytest.raises(
        UserError, match=r"line 1: a.mp4 is not under .*'A.mp4', 'a.MP4' differ from it in case"
    ):
        path_label_list(tmp_path, "train", 1)
    (tmp_path / "train.txt").write_text("A.mp4 0\na.MP4 0\n")
    assert len(path_label_list(tmp_path, "train", 1)[0]) == 2


_PIECES = st.sampled_from(
    [
        *NAMES,
        " ",
        "\t",
        ",",
        "\n",
        "\r",
        "\r\n",
        "0",
        "1",
        "-1",
        "300",
        "9" * 25,
        '"',
        "\\",
        "#",
        "\u2028",
        "\x0b",
        "\x1c",
        "\u00a0",
        "\ufeff",
        "cafe\u0301.mp4",
        "..",
        "/",
        "./",
        "\0",
        "Run",
        "Run/v_Run_g01_c01.avi",
        "1 Run",
        "film_run_1.avi",
        "label,youtube_id,time_start,time_end\n",
        "tap,a,1,2\n",
    ]
)
_TEXTS = st.one_of(st.lists(_PIECES, max_size=8).map("".join), st.text(max_size=20)).map(
    lambda text: text.encode("utf-8", "surrogatepass")
)


@FUZZ
@given(st.one_of(_TEXTS, st.binary(max_size=20)))
@example(b"/etc/passwd 0")
@example(b"../../../../etc/passwd 0")
@example(b"\xed\xa0\x80 0")
@example(b" 0")
@example(b", 0")
@example(b"-1")
@example(b"0 0 0 0")
def test_any_list_is_read_or_refused(videos, content):
    (videos / "train.txt").write_bytes(content)
    for parser in (path_label_list, frame_list):
        _parsed_or_refused(parser, videos)


@FUZZ
@given(_TEXTS, _TEXTS)
@example(b"1 Run", b"Run\\v_Run_g01_c01.avi 1")
@example(b"1 Run", b'"Run/v_Run_g01_c01.avi" 1')
@example(b"1 Run", b"Run/v_Run_g01_c01.avi " + b"9" * 5000)
@example(b"1 Run", b"Run/v_Run_g01_c01.avi 1 300")
@example(b"9" * 5000 + b" Run", b"")
@example("\u0663 Run".encode(), b"")
@example(b"1  \t", b"")
@example(b"1 a/b", b"a/b/x.avi 1")
def test_any_list_of_ucf101_is_read_or_refused(videos, classes, content):
    (videos / "ucfTrainTestlist/classInd.txt").write_bytes(classes)
    (videos / "ucfTrainTestlist/trainlist01.txt").write_bytes(content)
    _parsed_or_refused(ucf101, videos)


def test_long_class_lists_are_read_fast(videos):
    text = "".join(f"{i} class{i}\n" for i in range(1, 30_001))
    (videos / "ucfTrainTestlist/classInd.txt").write_text(text)
    (videos / "ucfTrainTestlist/trainlist01.txt").write_text("class1/x.avi 1\n")
    assert "class1/x.avi is not under" in _parsed_or_refused(ucf101, videos)[1]


@pytest.mark.parametrize(
    "name", ["Caf\u00e9 & Co.", "na\u00efve (1)", "\u8dd1", "a:b", "'x'", "#1", "a\u2028b"]
)
def test_class_names_may_hold_any_character(tmp_path, name):
    uid = f"{name}/v_x_g01_c01.avi"
    _touch(tmp_path / "videos" / uid)
    _touch(tmp_path / "ucfTrainTestlist/classInd.txt")
    (tmp_path / "ucfTrainTestlist/classInd.txt").write_text(f"7 {name}\n", encoding="utf-8")
    listed = unicodedata.normalize("NFD", uid)
    (tmp_path / "ucfTrainTestlist/trainlist01.txt").write_text(f"{listed} 7\n", encoding="utf-8")
    (record,), classes = ucf101(tmp_path, "train", 1)
    assert classes == [name] and (record.uid, record.label) == (listed, 0)


@FUZZ
@given(_TEXTS)
@example(b"film_run_1.avi\t1")
def test_any_list_of_hmdb51_is_read_or_refused(videos, content):
    lists = videos / "splits"
    lists.mkdir(exist_ok=True)
    (lists / "run_test_split1.txt").write_bytes(content)
    _parsed_or_refused(hmdb51, videos)


def test_apple_double_files_beside_lists_and_videos_are_left_out(tmp_path):
    _touch(tmp_path / "videos/run/film_run_1.avi")
    _touch(tmp_path / "videos/run/._film_run_1.avi")
    _touch(tmp_path / "splits/run_test_split1.txt")
    (tmp_path / "splits/run_test_split1.txt").write_text("film_run_1.avi 1\n")
    (tmp_path / "splits/._run_test_split1.txt").write_bytes(b"\0\x05\x16\x07\xff")
    records, classes = hmdb51(tmp_path, "train", 1)
    assert classes == ["run"] and len(records) == 1
    for name in ("a/x.avi", "a/._x.avi", "__MACOSX/a/x.avi", "@eaDir/x.avi", "a/@eaDir/x.avi"):
        _touch(tmp_path / "train" / name)
    records, classes = video_folder(tmp_path, "train", 1)
    assert classes == ["a"] and [record.uid for record in records] == ["a/x.avi"]


_HEAD = b"label,youtube_id,time_start,time_end\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            _HEAD + b"caf\xe9,a,1,2\n",
            "train.csv, line 2: not a text file in UTF-8 (byte 0xe9); save the list as UTF-8",
        ),
        ((_HEAD + b"tap,a,1,2\n").decode().encode("utf-16"), "not UTF-8, but UTF-16"),
        (_HEAD + b"tap,a," + b"9" * 400 + b",2\n", "line 2: times and label expected"),
        (_HEAD + b"tap,a,nan,2\n", "line 2: times and label expected"),
        (_HEAD + b",a,1,2\n", "line 2: times and label expected"),
        (_HEAD + b"tap,,1,2\n", "line 2: times and label expected"),
        (_HEAD + b'"tap,a,1,2\n' + b"x" * 200_000, "not a table"),
        (b"", "an official list has the columns"),
        (_HEAD + b"tap,a,1,2,x,y\n", "lists no video"),
    ],
)
def test_lists_of_kinetics_are_refused_by_line(tmp_path, text, reason):
    (tmp_path / "train.csv").write_bytes(text)
    assert reason in _parsed_or_refused(kinetics, tmp_path)[1]


def test_files_whose_names_are_not_utf8_are_not_videos_of_kinetics(tmp_path):
    (tmp_path / "train.csv").write_bytes(_HEAD + "caf\u00e9,a,1,2\n".encode())
    _touch(tmp_path / "train/caf\udce9/a_000001_000002.mp4")
    ((record,), classes) = kinetics(tmp_path, "train", 1)
    assert classes == ["caf\u00e9"] and record.uid == "caf\udce9/a_000001_000002.mp4"


@pytest.mark.parametrize(
    "other", ["train/tap/a_000001_000002.mkv", "train/again/a_000001_000002.mp4"]
)
def test_two_files_with_the_same_stem_are_refused_by_name(tmp_path, other):
    (tmp_path / "train.csv").write_bytes(_HEAD + b"tap,a,1,2\n")
    _touch(tmp_path / "train/tap/a_000001_000002.mp4")
    _touch(tmp_path / "train/tap/other.mp4")
    _touch(tmp_path / "train/tap/other.mkv")  # not listed
    assert len(kinetics(tmp_path, "train", 1)[0]) == 1
    _touch(tmp_path / other)
    with pytest.raises(
        UserError,
        match=r"line 2: .*a_000001_000002.mp4 .*are both a_000001_000002; remove or rename",
    ):
        kinetics(tmp_path, "train", 1)


@FUZZ
@given(_TEXTS)
def test_any_list_of_kinetics_is_read_or_refused(videos, content):
    (videos / "train.csv").write_bytes(_HEAD + content)
    try:
        _parsed_or_refused(kinetics, videos)
    finally:
        (videos / "train.csv").unlink()


@FUZZ
@given(
    st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20
    )
)
@example("two\nlines")
@example("\x1b[31mred")
@example("\u2028")
@example(" ")
@example("__MACOSX")
@example("-")
@example("caf\udce9")
def test_files_and_folders_of_any_name_are_read_from_folders(tmp_path_factory, name):
    root = tmp_path_factory.mktemp("folders")
    _touch(root / "train/run" / f"{name}x.mp4")
    _touch(root / "train" / f"{name}y" / "z.mp4")
    _touch(root / "train/run" / f"{name}.swf")
    records, message = _parsed_or_refused(video_folder, root)
    if name.startswith("."):
        assert "lists no video" in message
    else:
        assert len(records) == 2


def test_a_warning_about_a_name_of_several_lines_is_one_line(tmp_path, caplog):
    _touch(tmp_path / "train/run/x.mp4")
    _touch(tmp_path / "train/run/two\nlines\x1b[31m.swf")
    video_folder(tmp_path, "train", 1)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.isprintable() and r"two\nlines\x1b[31m.swf" in warning
