"""Bad input gives one clear line on stderr, status 1 and no traceback, and no file is lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import REPO, TINY, counting_video, tiny, tiny_ucf101, tool
from vidrobust import config
from vidrobust.methods import without_effect
from vidrobust.utils import errors


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Make a data set, a config file and a finished run."""
    top = tmp_path_factory.mktemp("cli")
    tiny_ucf101(top / "data")
    (top / "config.yaml").write_text("data: {root: data}")
    done = tool(
        "train_net",
        "--cfg",
        "config.yaml",
        "--output-dir",
        "run",
        *TINY,
        "eval.enabled=false",
        cwd=top,
    )
    assert done.returncode == 0, done.stderr
    return top


def _refused(done):
    lines = [line for line in done.stderr.strip().splitlines() if " I " not in line[:20]]
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr and len(lines) == 1, done.stderr
    return lines[0]


def _train(place, *words):
    return tool("train_net", "--cfg", "config.yaml", *tiny("eval.enabled=false", *words), cwd=place)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.framse=3"], "unknown option 'data.framse'; did you mean 'data.frames'"),
        (["eval.name=../other"], "eval.name=../other: must be the name of one folder"),
        (["eval.threats=linf-4/255"], "eval.threats=linf-4/255: needs a list; write"),
        (["--dry-run", "model.backbone=r2plus1d_81"], "did you mean 'r2plus1d_18'"),
        (["--dry-run", "method.false_negatives.rule=nonee"], "did you mean 'none'"),
        (["data.stride=0"], "data.stride=0: must be at least 1"),
        (["seed=one"], "seed=one: 'one' is no such value; write a whole number"),
        (["augment.flip=2"], "augment.flip=2.0: must be at most 1"),
        (
            ["method.adversary.threats=[linf-8]"],
            "method.adversary.threats: eps=8: must be at most 1, as Linf 1 allows any clip",
        ),
        (["data.root=/nowhere"], "no data root /nowhere"),
        (["data.root=config.yaml"], "config.yaml is a file; data.root is a folder"),
        (["data.name=motionshapes", "data.root=config.yaml"], "config.yaml: is a file"),
        (["--output-dir", "/proc/run"], "/proc/run: No such file or directory"),
        (["device=cdua"], "device=cdua: choose auto, cpu, cuda"),
        (["device=cuda:77"], "device=cuda:77: this machine has"),
        (["train.batch_size=1"], "need two videos on each rank"),
        (["model.weights=config.yaml"], "config.yaml: not a checkpoint"),
        (["data.fold=3"], "data.fold=3 is not one of this data set's splits"),
        (
            ["--output-dir", "run"],
            "output directory run holds a finished run; tools/test_net.py measures it, --resume",
        ),
        (["--output-dir", "data", "--overwrite"], "not the folder of a run"),
        (["--output-dir", "x", "--resume", "nothing.pt"], "no checkpoint nothing.pt"),
        (["--output-dir", "x1", "model.backbone=r2plus1d"], "did you mean 'r2plus1d_18'"),
        (["--output-dir", "x2", "method.name=simcrl"], "did you mean 'simclr'"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line_and_leaves_no_folder(place, words, message):
    options = [word for word in words if "=" in word]
    arguments = [word for word in words if "=" not in word]
    done = tool(
        "train_net",
        "--cfg",
        "config.yaml",
        *tiny("eval.enabled=false", *options),
        *arguments,
        cwd=place,
    )
    assert message in _refused(done)
    # a failed start must not leave a folder that the next start would refuse
    assert not (place / "outputs").exists()
    assert (place / "run/checkpoints/last.pt").is_file() and (place / "data/videos").is_dir()


def test_a_batch_larger_than_the_data_set_is_refused(place):
    done = tool(
        "train_net",
        "--cfg",
        "config.yaml",
        *tiny("train.batch_size=99"),
        "--output-dir",
        "x3",
        cwd=place,
    )
    assert "train.batch_size=99 is larger than the data set (8 videos)" in _refused(done)


def test_a_wrong_config_file_is_refused_in_one_line(place):
    for name, text, message in [
        ("double.yaml", "seed: 1\nseed: 2", "duplicate key seed"),
        ("tab.yaml", "data:\n\troot: x", "cannot start any token, line 2"),
        ("latin.yaml", "data: {root: caf\xe9}", "latin.yaml: not a text file"),
        ("empty_base.yaml", "_BASE_: 3", "_BASE_ must be a config file or a list of them"),
        ("missing.yaml", None, "no configuration file missing.yaml"),
    ]:
        if text:
            (place / name).write_bytes(text.encode("latin-1"))
        assert message in _refused(tool("train_net", "--cfg", name, cwd=place))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("b.avi 0\nnothing.avi 1\n", "line 2: nothing.avi is not under"),
        ("b.avi 1\n", "labels look 1-based"),
        ("b.avi 0\nc.avi -3\n", "label -3 is out of range"),
    ],
)
def test_a_wrong_list_of_videos_is_refused_in_one_line(tmp_path, content, message):
    for name in ("b.avi", "c.avi"):
        counting_video(tmp_path / name, 20)
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text(content)
    (tmp_path / "config.yaml").write_text("data: {root: .}")
    done = tool("train_net", "--cfg", "config.yaml", *tiny("data.name=list"), cwd=tmp_path)
    assert message in _refused(done)


def test_a_wrong_test_split_is_refused_before_training(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    (root / "ucfTrainTestlist/testlist01.txt").write_text("")
    (tmp_path / "config.yaml").write_text("data: {root: data}")
    done = tool("train_net", "--cfg", "config.yaml", *TINY, cwd=tmp_path)
    assert "testlist01.txt lists no video" in _refused(done) and not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "the file is empty"), (None, "cut short"), (b"text" * 99, "not a video file")],
)
def test_too_many_broken_files_stop_training(tmp_path, content, message):
    root = tiny_ucf101(tmp_path / "data")
    # all training videos of the class, so that the first batch holds one
    for path in (root / "videos/Alpha").glob("*g0[1-4]*"):
        path.write_bytes(path.read_bytes()[:900] if content is None else content)
    (tmp_path / "config.yaml").write_text("data: {root: data}")
    done = _train(tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    *warnings, line = done.stderr.splitlines()
    assert "of 8 training videos are bad" in line and message in line and "v_Alpha_g0" in line
    assert any("another takes its place" in text and message in text for text in warnings)


def test_broken_test_files_are_failed_rows_and_reported_at_the_end(place, tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    (root / "videos/Beta/v_Beta_g05_c01.avi").write_bytes(b"")
    out = tmp_path / "eval"
    done = tool(
        "test_net",
        "--checkpoint",
        place / "run",
        "--output-dir",
        out,
        f"data.root={root}",
        cwd=tmp_path,
    )
    line = _refused(done)
    assert (
        "videos that do not decode: 1; those of test lists count as wrong" in line
        and "v_Beta_g05_c01.avi: the file is empty" in line
    )
    assert (out / "report.md").is_file() and "do not decode" in (out / "summary.json").read_text()
    # what else was asked for is done all the same
    words = ["--checkpoint", place / "run", f"data.root={root}", "--output-dir", out]
    done = tool("test_net", *words, "--fail-under", "clean=100", cwd=tmp_path)
    assert done.returncode == 3 and "--fail-under: clean: " in done.stderr
    assert "videos that do not decode" in _refused(
        tool("test_net", *words, "--fail-under", "clean=0", cwd=tmp_path)
    )
    done = tool(
        "extract_features",
        "--checkpoint",
        place / "run",
        "--output",
        tmp_path / "f.npz",
        f"data.root={root}",
        cwd=tmp_path,
    )
    assert (
        "1 of 4 videos do not decode and have no rows in" in _refused(done)
        and (tmp_path / "f.npz").is_file()
    )


def test_a_wrong_checkpoint_or_another_model_is_refused_in_one_line(place, tmp_path):
    whole = (place / "run/checkpoints/last.pt").read_bytes()
    (tmp_path / "short.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"weight": torch.ones(2)}, tmp_path / "plain.pt")
    for words, message in [
        (["short.pt"], "short.pt: not a checkpoint, or incomplete"),
        (["nothing.pt"], "no checkpoint nothing.pt"),
        (["plain.pt"], "not a training checkpoint"),
        (
            [place / "run", "model.width=8"],
            "model.width=8 (4): the checkpoint was trained with the value in parentheses",
        ),
        ([place / "run", "eval.threats=[linf--1]"], "must be at least 0"),
        (
            [place / "run", "method.adversary.name=clae", "eval.branch=adv"],
            "method.adversary.name=clae (none): the checkpoint was trained with",
        ),
    ]:
        line = _refused(
            tool("test_net", "--checkpoint", *words, f"data.root={place / 'data'}", cwd=tmp_path)
        )
        assert message in line, line


def test_another_evaluation_of_the_same_name_is_not_mixed_in(place):
    words = ["test_net", "--checkpoint", "run", f"data.root={place / 'data'}"]
    assert tool(*words, cwd=place).returncode == 0
    first = (place / "run/eval/pgd/summary.json").read_bytes()
    assert tool(*words, cwd=place).returncode == 0  # the same one again
    assert (place / "run/eval/pgd/summary.json").read_bytes() == first
    assert (
        "holds another evaluation, of other options (eval.steps); set eval.name=NAME, or"
        " --overwrite" in _refused(tool(*words, "eval.steps=3", cwd=place))
    )
    assert (place / "run/eval/pgd/summary.json").read_bytes() == first
    assert tool(*words, "eval.steps=3", "eval.name=other", cwd=place).returncode == 0
    assert tool(*words, "eval.steps=3", "--overwrite", cwd=place).returncode == 0
    assert (place / "run/eval/pgd/summary.json").read_bytes() != first


def test_an_override_directly_after_resume_is_not_read_as_a_path(place):
    done = tool(
        "train_net",
        "--cfg",
        "config.yaml",
        "--output-dir",
        "run",
        "--resume",
        *TINY,
        "eval.enabled=false",
        cwd=place,
    )
    assert done.returncode == 0 and "training was complete at step 4" in done.stderr


def test_method_options_without_effect_are_logged(place):
    words = (
        "method.name=supervised",
        "method.clips_per_video=3",
        "method.temperature=0.5",
        "train.max_steps=1",
    )
    done = _train(place, "--output-dir", "unused", *words)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "no effect" in line]
    assert len(warnings) == 1 and warnings[0].endswith(
        "no effect with method.name=supervised as it is configured: method.clips_per_video"
    )


@pytest.mark.parametrize(
    "key, off, on",
    [
        ("augment.scale=[0.5,1]", ["augment.shift=4"], []),
        (
            "augment.original_shift=4",
            ["method.adversary.name=rocl"],
            ["method.adversary.name=advcl"],
        ),
        ("augment.original_shift=3", [], ["method.adversary.name=acl", "method.adversary.air=0.5"]),
        ("augment.corruption_prob=0.7", [], ["augment.corruptions=[fog]"]),
        ("optim.milestones=[0.5]", [], ["optim.schedule=step"]),
        ("optim.gamma=0.5", [], ["optim.schedule=step"]),
        ("optim.lars_exclude=false", [], ["optim.name=lars"]),
        ("optim.momentum=0.8", ["optim.name=adamw"], ["optim.name=lars"]),
    ],
)
def test_options_that_other_options_disable_are_reported_as_without_effect(key, off, on):
    name = key.split("=")[0]
    assert name in without_effect(config.loads("", [key, *off]))
    assert name not in without_effect(config.loads("", [key, *on]))
    assert name not in without_effect(config.loads("", off))  # at its default


def test_a_missing_argument_prints_usage_without_a_traceback(place):
    done = tool("train_net", cwd=place)
    assert done.returncode == 2 and "--cfg" in done.stderr and "Traceback" not in done.stderr


def test_overwrite_deletes_nothing_before_the_new_run_has_started(place, tmp_path):
    words = ["train_net", "--cfg", "config.yaml", "--output-dir", tmp_path / "o"]
    assert tool(*words, *tiny("eval.enabled=false"), cwd=place).returncode == 0
    before = (tmp_path / "o/checkpoints/last.pt").read_bytes()
    for bad in (
        "data.root=/nowhere",
        "model.backbone=none",
        "train.batch_size=99",
        "optim.schedule=cosin",
    ):
        assert (
            tool(*words, "--overwrite", *tiny("eval.enabled=false", bad), cwd=place).returncode == 1
        )
        assert (tmp_path / "o/checkpoints/last.pt").read_bytes() == before
    assert (
        tool(*words, "--overwrite", *tiny("eval.enabled=false", "seed=3"), cwd=place).returncode
        == 0
    )
    assert (tmp_path / "o/checkpoints/last.pt").read_bytes() != before
    done = tool(*words, "--overwrite", "--resume", *tiny(), cwd=place)
    assert done.returncode == 2 and "not allowed with" in done.stderr


def test_resume_from_another_run_continues_in_a_new_folder(place, tmp_path):
    words = [
        "train_net",
        "--cfg",
        "config.yaml",
        "--resume",
        "run",
        *tiny("eval.enabled=false", "train.epochs=3"),
    ]
    done = tool(*words, "--output-dir", tmp_path / "o", cwd=place)
    assert (
        done.returncode == 0
        and "steps 4 to 6" in done.stderr
        and "train.epochs=3 (2)" in done.stderr
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    refusal = _refused(tool(*words, "--output-dir", tmp_path / "full", cwd=place))
    assert "full holds other files; set --output-dir" in refusal
    (tmp_path / "full/jobs").mkdir()  # of `vidrobust submit`
    refusal = _refused(tool(*words, "--output-dir", tmp_path / "full", cwd=place))
    assert "full is in use; --resume continues it" in refusal


def test_a_tool_as_a_process_gives_the_same_status_and_stderr(place):
    """Most tests run tools inside the test process, by `tool`; users run them as a process."""
    command = [
        sys.executable,
        str(REPO / "tools/train_net.py"),
        "--cfg",
        "config.yaml",
        "data.framse=3",
    ]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr
        == "error: command line: unknown option 'data.framse'; did you mean 'data.frames'?\n"
    )


def test_a_finished_run_can_be_continued_and_evaluated_again(tmp_path):
    tiny_ucf101(tmp_path / "data")
    (tmp_path / "config.yaml").write_text("data: {root: data}")
    words = ["train_net", "--cfg", "config.yaml", "--output-dir", "o"]
    assert tool(*words, *TINY, cwd=tmp_path).returncode == 0
    done = tool(*words, "--resume", *tiny("train.epochs=3"), cwd=tmp_path)
    assert done.returncode == 0 and "step 6" in (tmp_path / "o/eval/pgd/report.md").read_text(), (
        done.stderr
    )


def test_a_model_can_be_evaluated_on_a_data_set_with_other_classes(tmp_path):
    """A supervised model gives features, and its backbone is evaluated by a linear probe."""
    tiny_ucf101(tmp_path / "data")
    (tmp_path / "config.yaml").write_text("data: {root: data}")
    # at the default rate this network saturates, and its attack finds no gradient
    words = tiny("method.name=supervised", "eval.enabled=false", "optim.lr=0.01")
    assert (
        tool(
            "train_net", "--cfg", "config.yaml", "--output-dir", "o", *words, cwd=tmp_path
        ).returncode
        == 0
    )
    tiny_ucf101(tmp_path / "three", ("Alpha", "Beta", "Gamma"))
    for name in ("extract_features", "test_net"):
        done = tool(name, "--checkpoint", "o", "data.root=three", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "on the linear probe" in (tmp_path / "o/eval/pgd/report.md").read_text()
    done = tool("test_net", "--checkpoint", "o", "eval.name=own", cwd=tmp_path)
    assert "| own head |" in (tmp_path / "o/eval/own/report.md").read_text(), done.stderr


def test_features_of_another_split_are_not_overwritten(place, tmp_path):
    words = [
        "extract_features",
        "--checkpoint",
        "run",
        "--output",
        tmp_path / "f.npz",
        f"data.root={place / 'data'}",
    ]
    assert tool(*words, cwd=place).returncode == tool(*words, cwd=place).returncode == 0
    before = (tmp_path / "f.npz").read_bytes()
    assert "holds other features" in _refused(tool(*words, "--split", "train", cwd=place))
    assert (tmp_path / "f.npz").read_bytes() == before
    assert tool(*words, "--split", "train", "--overwrite", cwd=place).returncode == 0
    assert (tmp_path / "f.npz").read_bytes() != before


def test_a_resume_to_fewer_steps_than_were_done_changes_nothing(place):
    before = (place / "run/config.yaml").read_bytes()
    words = ["train_net", "--cfg", "config.yaml", "--output-dir", "run", "--resume"]
    line = _refused(tool(*words, *tiny("eval.enabled=false", "train.epochs=1"), cwd=place))
    assert (
        "is at step 4, beyond the 2 asked for" in line
        and (place / "run/config.yaml").read_bytes() == before
    )


def test_an_evaluation_without_attacks_still_reports_knn_and_probe(place):
    words = (f"data.root={place / 'data'}", "eval.threats=[]", "eval.name=knn")
    done = tool("test_net", "--checkpoint", "run", *words, cwd=place)
    assert done.returncode == 0, done.stderr
    text = (place / "run/eval/knn/report.md").read_text()
    assert text.startswith("# ucf101, test, fold 1: 4 videos\n") and "| kNN |" in text
    assert "How robust" not in text
    summary = json.loads((place / "run/eval/knn/summary.json").read_text())
    assert summary["curve"] == [] and summary["clean_acc"] is None
    assert summary["representation"]["trained_knn"]["n"] == 4


def test_one_class_is_refused_before_training(tmp_path):
    tiny_ucf101(tmp_path / "data", ("Alone",))
    (tmp_path / "config.yaml").write_text("data: {root: data}")
    done = tool("train_net", "--cfg", "config.yaml", *TINY, cwd=tmp_path)
    line = _refused(done)
    assert "data.name=ucf101: data has one class, 'Alone'" in line and "eval.enabled=false" in line
    assert not (tmp_path / "outputs").exists()
    trained = tool(
        "train_net",
        "--cfg",
        "config.yaml",
        *tiny("eval.enabled=false", "train.max_steps=1"),
        cwd=tmp_path,
    )
    assert trained.returncode == 0, trained.stderr


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["TRAIN.BATCH_SIZE", "16"], "'TRAIN.BATCH_SIZE'; did you mean 'train.batch_size'?"),
        (["TRAIN.BATCH_SIZE=16"], "'TRAIN.BATCH_SIZE'; did you mean 'train.batch_size'?"),
        (["Train.Batch_Size=16"], "'Train.Batch_Size'; did you mean 'train.batch_size'?"),
        (["SOLVER.BASE_LR", "0.1"], "'SOLVER.BASE_LR'; did you mean 'optim.lr'?"),
        (["DATA.NUM_FRAMES", "8"], "'DATA.NUM_FRAMES'; did you mean 'data.frames'?"),
        (["RNG_SEED", "1"], "'RNG_SEED'; did you mean 'seed'?"),
        (["OUTPUT_DIR", "x"], "'OUTPUT_DIR'; use --output-dir"),
        (["NUM_GPUS", "2"], "'NUM_GPUS'; use torchrun --nproc_per_node"),
    ],
)
def test_options_of_slowfast_are_answered_with_our_names(place, words, key):
    line = _refused(tool("train_net", "--cfg", "config.yaml", *words, cwd=place))
    assert f"command line: unknown option {key}" in line


def test_every_name_suggested_for_slowfast_options_is_an_option():
    keys = {key for key, _ in config.options()}
    assert set(errors._SLOWFAST.values()) <= keys


def test_features_into_a_folder_are_refused_by_name(place):
    (place / "folder").mkdir(exist_ok=True)
    done = tool("extract_features", "--checkpoint", "run", "--output", "folder", cwd=place)
    assert "--output folder: is a folder; name a file in it, such as folder/test.npz" in _refused(
        done
    )


def test_an_output_folder_whose_name_is_not_utf_8_is_refused(place):
    line = _refused(_train(place, "--output-dir", os.fsdecode(b"caf\xe9")))
    assert r"output directory caf\xe9 is not text in UTF-8" in line
    assert r"data.root=\xe9: an option holds only UTF-8 text" in _refused(
        _train(place, "data.root=" + os.fsdecode(b"\xe9"))
    )


@pytest.mark.parametrize(
    "name",
    [
        "tools/train_net.py",
        "tools/test_net.py",
        "tools/extract_features.py",
        "tools/predict.py",
        "tools/study.py",
        "tools/visualize.py",
        "tools/benchmark.py",
        "datasets/prepare.py",
    ],
)
def test_a_clone_runs_its_own_package_whatever_is_installed(tmp_path, name):
    clone = tmp_path / "clone"
    (clone / name).parent.mkdir(parents=True)
    shutil.copy(REPO / name, clone / name)
    shutil.copytree(
        REPO / "vidrobust", clone / "vidrobust", ignore=shutil.ignore_patterns("__pycache__")
    )
    with open(clone / "vidrobust/__init__.py", "a") as file:
        file.write("import sys\nprint('the clone', file=sys.stderr)\nsys.exit(7)\n")
    command = [sys.executable, str(clone / name), "--help"]
    env = {**os.environ, "PYTHONPATH": str(REPO)}  # as an installed package of another clone
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 7 and done.stderr == "the clone\n"


def test_the_console_script_runs_the_same_commands(tmp_path):
    """It works from any folder, with a config file given by name."""
    run = [sys.executable, "-c", "from vidrobust.cli.entry import main; main()"]
    env = os.environ | {"PYTHONPATH": str(REPO)}
    words = ["train", "--cfg", "ucf101_csl_adv", "--dry-run", "data.frames=3"]
    done = subprocess.run([*run, *words], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "frames: 3" in done.stdout and "name: clae" in done.stdout
    done = subprocess.run([*run, "trian"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: vidrobust trian: choose train, ")
    done = subprocess.run(
        [*run, "--version"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.stdout.startswith("vidrobust 0.")


_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# prints MiB of a tensor of 64 MiB that are in pages of 2 MiB
_TENSOR_OF_A_TOOL = """
import sys
from vidrobust.cli.entry import run_tool
sys.argv = ["train_net.py", "--help"]
try:
    run_tool("train_net")
except SystemExit:
    pass
import torch
x = torch.ones(2**24)
huge = [line.split()[1] for line in open("/proc/self/smaps") if line.startswith("AnonHuge")]
print(sum(map(int, huge)) // 2**10)
"""


@pytest.mark.skipif(
    not _HUGE_PAGES.is_file() or "[never]" in _HUGE_PAGES.read_text(),
    reason="this system has no huge pages",
)
@pytest.mark.parametrize(("told", "huge"), [({}, True), ({"THP_MEM_ALLOC_ENABLE": "0"}, False)])
def test_large_tensors_of_tools_are_in_huge_pages_unless_told_otherwise(told, huge):
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    env.pop("THP_MEM_ALLOC_ENABLE", None)  # the tests' own tools have set it
    done = subprocess.run(
        [sys.executable, "-c", _TENSOR_OF_A_TOOL], env=env | told, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (int(done.stdout.split()[-1]) >= 60) == (huge or "[always]" in _HUGE_PAGES.read_text())


def test_an_unknown_config_name_is_refused_with_a_suggestion(place):
    line = _refused(tool("train_net", "--cfg", "ucf101_csl_adw", cwd=place))
    assert "--cfg ucf101_csl_adw: no such file" in line and "did you mean 'ucf101_csl_adv'?" in line
