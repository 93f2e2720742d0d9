"""`status` shows what runs, evaluations and studies do, whatever state their files are in."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

from tests.helpers import REPO, another_process, tiny, tiny_ucf101, tool
from vidrobust.cli.folder_status import statuses
from vidrobust.utils import atomic_files
from vidrobust.utils.logging import read_metrics

OLD = REPO / "tests/files/before_layout"
HOSTILE = "\x1b[2Jmove\u202e\n<b>"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Make a run with an evaluation of attacks, corruptions and cues."""
    top = tmp_path_factory.mktemp("status")
    tiny_ucf101(top / "data")
    options = tiny(
        "train.epochs=1",
        "eval.corruption.names=[contrast]",
        "eval.corruption.severities=[1]",
        "eval.bias=[freeze]",
        "eval.name=all",
    )
    (top / "config.yaml").write_text("data: {root: data}")
    done = tool("train_net", "--cfg", "config.yaml", "--output-dir", "run", *options, cwd=top)
    assert done.returncode == 0, done.stderr
    return top / "run"


def _copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def _by_kind(folder):
    return {status.kind: status for status in statuses([folder])}


def _unfinished(run):
    (run / "backbone.pt").unlink()
    (run / "eval/all/summary.json").unlink()


def test_a_finished_run_and_its_evaluation(trained):
    found = _by_kind(trained)
    run, evaluation = found["run"], found["evaluation"]
    assert (run.state, run.done, run.total) == ("finished", 2, 2)
    assert run.numbers["loss"] == read_metrics(trained)[-1]["loss"]
    assert run.pid is None
    assert (evaluation.state, evaluation.done) == ("finished", evaluation.total)
    summary = json.loads((trained / "eval/all/summary.json").read_text())
    assert evaluation.numbers["robust_acc"] == summary["robust_acc"]


def test_the_planned_rows_are_those_that_an_evaluation_writes(trained):
    planned = json.loads((trained / "eval/all/identity.json").read_text())["planned"]
    written = {
        stem: len((trained / f"eval/all/{stem}.jsonl").read_text().splitlines()) for stem in planned
    }
    assert planned == written and set(planned) == {"results", "corruptions", "bias"}


def test_rows_of_other_data_and_of_saved_clips_are_counted(trained, tmp_path):
    run = _copy(trained, tmp_path)
    tiny_ucf101(tmp_path / "data", ("Alpha", "Beta", "Gamma"))
    top = trained.parent
    command = ["--checkpoint", run, "eval.corruption.names=[]", "eval.bias=[]", "eval.embeddings=0"]
    saving = ["eval.name=saving", "eval.save=all", "eval.threats=[linf-8/255]"]
    done = tool("test_net", *command, *saving, cwd=top)
    assert done.returncode == 0, done.stderr
    other = [
        f"{part}={value}"
        for name in ("shift", "open_set")
        for part, value in (
            (f"eval.{name}.name", "ucf101"),
            (f"eval.{name}.root", tmp_path / "data"),
        )
    ]
    words = ["eval.name=others", "eval.threats=[]", f"eval.transfer=[{run}/eval/saving]", *other]
    done = tool("test_net", *command, *words, cwd=top)
    assert done.returncode == 0, done.stderr
    folder = run / "eval/others"
    planned = json.loads((folder / "identity.json").read_text())["planned"]
    assert set(planned) == {"shift", "open_set", "transfer"}
    written = {stem: len((folder / f"{stem}.jsonl").read_text().splitlines()) for stem in planned}
    assert planned == written
    (folder / "summary.json").unlink()
    (folder / "shift.jsonl").unlink()
    (status,) = statuses([folder])
    assert (status.state, status.total) == ("stopped", sum(planned.values()))
    assert status.done == planned["open_set"] + planned["transfer"]


def test_folders_of_many_clips_are_not_walked(tmp_path):
    for name in ("", "adversarial/linf-1_255", "corrupted", "clips", "features"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "identity.json").write_text("{}")
    assert [status.path for status in statuses([tmp_path])] == [str(tmp_path)]


def test_what_was_stopped_says_how_far_it_came(trained, tmp_path):
    run = _copy(trained, tmp_path)
    _unfinished(run)
    rows = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text(rows[0] + "\n" + rows[1][:30])  # cut off by a kill
    (run / "eval/all/bias.jsonl").unlink()
    lines = (run / "eval/all/results.jsonl").read_text().splitlines()
    (run / "eval/all/results.jsonl").write_text("\n".join(lines[:2]) + "\n" + lines[2][:30])
    found = _by_kind(run)
    assert (found["run"].state, found["run"].done, found["run"].total) == ("stopped", 1, 2)
    planned = json.loads((run / "eval/all/identity.json").read_text())["planned"]
    evaluation = found["evaluation"]
    assert evaluation.state == "stopped"
    assert (evaluation.done, evaluation.total) == (
        2 + planned["corruptions"],
        sum(planned.values()),
    )
    assert set(evaluation.numbers) == {"robust linf-0", "robust linf-8/255"}
    assert evaluation.left_s is None


def test_a_run_that_another_process_holds_has_its_id_and_the_time_left(trained, tmp_path):
    run = _copy(trained, tmp_path)
    _unfinished(run)
    first = read_metrics(run)[0]
    (run / "metrics.jsonl").write_text(json.dumps(first | {"step_s": 3.0, "total_steps": 5}) + "\n")
    pids = tmp_path / "pid"

    def trains():
        pids.write_text(str(os.getpid()))
        return atomic_files.held(run / "env.json", "in use")

    with another_process(trains):
        status = _by_kind(run)["run"]
        assert status.state == "running"
        assert (status.pid, status.host) == (int(pids.read_text()), socket.gethostname())
        assert status.left_s == 12.0
    assert _by_kind(run)["run"].state == "stopped"


def test_the_time_left_of_attacks_is_that_of_the_last_batches_of_all_ranks(trained, tmp_path):
    run = _copy(trained, tmp_path)
    folder = run / "eval/all"
    (folder / "summary.json").unlink()
    lines = (folder / "results.jsonl").read_text().splitlines(keepends=True)
    (folder / "results.jsonl").write_text(lines[0] * 40)
    (folder / "results.rank1.jsonl").write_text(lines[0] * 40)
    # two batches of twenty rows per rank, 4 s each: ten rows a second
    batch = json.dumps({"linf-8/255": {"pgd": 3.0, "square": 1.0}}) + "\n"
    for name in ("timing.jsonl", "timing.rank1.jsonl"):
        (folder / name).write_text(batch * 2)
    identity = json.loads((folder / "identity.json").read_text())
    identity["planned"] = {"results": 180}
    (folder / "identity.json").write_text(json.dumps(identity))
    with another_process(lambda: atomic_files.held(folder / ".lock", "in use")):
        status = _by_kind(run)["evaluation"]
    assert (status.state, status.done, status.total) == ("running", 80, 180)
    assert status.left_s == pytest.approx(10.0)


def test_looking_at_a_lock_refuses_no_process_that_takes_it(tmp_path):
    lock = tmp_path / ".lock"
    with atomic_files.held(lock, "in use") as file:
        atomic_files.sign(file)
    before = lock.read_text()
    lock.chmod(0o444)
    assert atomic_files.holder(lock) is None
    assert lock.read_text() == before
    with another_process(lambda: _signed(lock)):
        assert atomic_files.holder(lock) is not None
        assert json.loads(lock.read_text())["host"] == socket.gethostname()


def _signed(lock):
    lock.chmod(0o644)
    return atomic_files.held(lock, "in use")


def test_a_process_of_another_machine_is_named_as_it_signed(tmp_path):
    lock = tmp_path / ".lock"
    lock.write_text(json.dumps({"pid": 77, "host": "elsewhere"}))
    assert atomic_files.holder(lock) is None  # it has ended
    with another_process(lambda: atomic_files.held(lock, "in use")):
        assert atomic_files.holder(lock) == atomic_files.Holder(77, "elsewhere")


def test_files_of_earlier_revisions_are_read():
    found = {status.path: status for status in statuses([OLD])}
    assert {status.state for status in found.values()} == {"finished"}
    assert found[str(OLD / "run")].done == 4
    assert found[str(OLD / "study")].done == 1
    assert found[str(OLD / "run/eval/pgd")].numbers["robust_acc"] == 0.75


def test_a_run_that_failed_says_why(trained, tmp_path):
    run = _copy(trained, tmp_path)
    _unfinished(run)
    (run / "log.txt").write_text("[12/01 10:00:00] I hello\n[12/01 10:00:01] E the disk is full\n")
    status = _by_kind(run)["run"]
    assert (status.state, status.note) == ("failed", "the disk is full")
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 1, "event": "loss is nan"}) + "\n")
    assert _by_kind(run)["run"].note == "loss is nan"


BAD = [b"", b"\xff\xfe\n", b"[1, 2]\n", b"null\n", b'{"step": "x"}\n', b"[" * 9000 + b"\n"]
BAD += [b'{"step": 1e999, "split": "train", "loss": "low"}\n', b'{"step": ' + b"9" * 400 + b"}\n"]


@pytest.mark.parametrize("content", BAD)
def test_damaged_files_never_end_it(trained, tmp_path, content):
    damaged = _copy(trained, tmp_path)
    for path in damaged.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl", ".txt"):
            path.write_bytes(content)
    done = tool("status", damaged, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "damaged" in done.stdout
    _unfinished(damaged)
    assert tool("status", damaged, "--json", cwd=tmp_path).returncode == 0


def test_a_study_counts_its_measured_runs(tmp_path):
    shutil.copytree(OLD / "study", tmp_path / "study")
    plan = {"runs": ["clips/simclr/seed0", "clips/simclr/seed1"]}
    (tmp_path / "study/plan.json").write_text(json.dumps(plan))
    study = _by_kind(tmp_path)["study"]
    assert (study.state, study.done, study.total) == ("stopped", 1, 2)
    lock = tmp_path / "study/clips/simclr/seed0/env.json"
    with another_process(lambda: atomic_files.held(lock, "in use")):
        study = _by_kind(tmp_path)["study"]
        assert study.state == "running" and study.pid


def test_links_in_circles_end_and_foreign_links_are_not_searched(tmp_path):
    outputs = tmp_path / "outputs"
    (outputs / "deep").mkdir(parents=True)
    (outputs / "deep/up").symlink_to(outputs)
    (outputs / "self").symlink_to("self")
    (tmp_path / "archive").mkdir()
    shutil.copytree(OLD / "run", tmp_path / "archive/run")
    (outputs / "archive").symlink_to(tmp_path / "archive")  # a folder of anything
    assert statuses([outputs]) == []
    (outputs / "linked").symlink_to(tmp_path / "archive/run")  # a run on another disk
    assert len(statuses([outputs, outputs])) == 3


def test_names_cannot_send_commands_to_the_terminal(tmp_path):
    shutil.copytree(OLD / "run", tmp_path / HOSTILE)
    (tmp_path / HOSTILE / "log.txt").write_text("[t] E \x1b[2J\n")
    (tmp_path / HOSTILE / "backbone.pt").unlink()
    row = {"step": 3, "epoch": 0, "split": "train_epoch", "\x1b]0;x": 1.0}
    (tmp_path / HOSTILE / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    done = tool("status", tmp_path, cwd=tmp_path)
    assert done.returncode == 0 and "\\x1b[2Jmove" in done.stdout
    assert all(line.isprintable() for line in done.stdout.splitlines())
    paths = [
        each["path"] for each in json.loads(tool("status", ".", "--json", cwd=tmp_path).stdout)
    ]
    assert HOSTILE in paths[0]


def test_the_table_names_what_a_reader_asks(trained, tmp_path):
    done = tool("status", trained, cwd=tmp_path)
    titles, run, evaluation = done.stdout.splitlines()
    assert titles.split()[:5] == ["path", "kind", "state", "progress", "left"]
    assert "2 of 2 steps" in run and "loss" in run
    assert "finished" in evaluation and "robust_acc" in evaluation


def test_a_missing_folder_and_a_wrong_interval_are_refused(tmp_path):
    done = tool("status", "nowhere", cwd=tmp_path)
    assert done.returncode == 1 and "nowhere: no such folder" in done.stderr
    done = tool("status", ".", "--watch", 0, cwd=tmp_path)
    assert done.returncode == 1 and "--watch 0: must be" in done.stderr
    assert "no runs" in tool("status", ".", cwd=tmp_path).stdout


def test_long_logs_are_read_from_their_end(tmp_path):
    row = json.dumps({"step": 0, "split": "train", "loss": 1.0, "filling": "x" * 300}) + "\n"
    for number in range(100):
        run = tmp_path / f"runs/{number}"
        (run / "checkpoints").mkdir(parents=True)
        (run / "config.yaml").write_text("seed: 0\n")
        (run / "env.json").write_text("{}")
        (run / "metrics.jsonl").write_text(row * 1000)
    start = time.perf_counter()
    assert len(statuses([tmp_path])) == 100
    assert time.perf_counter() - start < 5


def test_it_starts_without_torch_and_watches_until_it_is_stopped(tmp_path):
    shutil.copytree(OLD / "run", tmp_path / "run")
    code = "import sys; from vidrobust.cli.entry import main; sys.argv = sys.argv[1:]; main()"
    words = ["vidrobust", "status", str(tmp_path), "--json", "--watch", "0.1"]
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-c", code, *words],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    decoder = json.JSONDecoder()
    text = ""
    while text.count("\n]\n") < 2:  # two whole lists
        line = process.stdout.readline()
        assert line, process.stderr.read()
        text += line
    process.terminate()
    imported = process.communicate()[1]
    assert process.returncode == 130
    assert len(decoder.raw_decode(text)[0]) == 3
    assert " torch\n" not in imported
