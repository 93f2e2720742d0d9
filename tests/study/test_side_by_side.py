"""Runs of a study side by side give the bytes of runs in turn, and a failure stops no other."""

import json
import os
import signal
import sys
import time
from argparse import Namespace
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import fake_slurm
from tests.helpers import REPO, tiny, tool
from tests.processes import ENV, Process
from tests.utils.test_stopping import session, wait_until
from vidrobust import checkpoint, config
from vidrobust.cli import cluster_jobs, study
from vidrobust.study import Arm, side_by_side
from vidrobust.study.run import require_same
from vidrobust.study.side_by_side import run_side_by_side
from vidrobust.utils import child_commands
from vidrobust.utils.errors import UserError
from vidrobust.utils.stopping import EXIT_STOPPED, StopAsked


def _arm(top: Path, name: str, *needs: str, workers: int = 0) -> Arm:
    cfg = config.loads("", [f"data.workers={workers}"])
    folders = tuple(top / "d" / each / "seed0" for each in needs)
    return Arm("d", name, 0, cfg, top / "d" / name / "seed0", folders)


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """Return a function: arms with the code that each runs -> (problems, starts, ends)."""

    def run(runs, jobs, code="pass", after=lambda: None):
        log = tmp_path / "log"
        begin = f"import os, time; open({str(log)!r}, 'a').write(NAME + ' starts\\n');"
        finish = "os.makedirs(FOLDER, exist_ok=True); open(FOLDER + '/summary.json', 'w');"
        end = f"{finish} open({str(log)!r}, 'a').write(NAME + ' ends\\n')"

        def command(words):
            own = code if isinstance(code, str) else code.get(words[0], "pass")
            names = f"NAME = {words[0]!r}; FOLDER = {words[1]!r}; {begin}\n{own}\n{end}"
            return [sys.executable, "-c", names]

        monkeypatch.setattr(child_commands, "command", command)

        def words(arm):
            return [arm.name, str(arm.folder / "eval" / arm.cfg.eval.name)]

        problems = run_side_by_side(runs, jobs, words, tmp_path / "jobs", after)
        return problems, log.read_text().splitlines()

    return run


def test_no_more_runs_than_jobs_work_at_once(pool, tmp_path):
    runs = [_arm(tmp_path, name) for name in "abcde"]
    problems, events = pool(runs, 2, "time.sleep(0.2)")
    active = [0]
    for event in events:
        active.append(active[-1] + (1 if event.endswith("starts") else -1))
    assert problems == [] and len(events) == 10
    assert max(active) == 2 and active[-1] == 0


def test_a_run_waits_for_the_one_it_starts_from(pool, tmp_path):
    runs = [_arm(tmp_path, "student", "teacher"), _arm(tmp_path, "teacher"), _arm(tmp_path, "z")]
    _, events = pool(runs, 3, "time.sleep(0.2)")
    assert events.index("student starts") > events.index("teacher ends")
    assert events.index("z starts") < events.index("student starts")


def test_a_run_that_fails_stops_only_those_that_start_from_it(pool, tmp_path):
    code = {"teacher": "import sys; sys.exit('[01/02 03:04:05] E data.root=x: missing')"}
    runs = [_arm(tmp_path, "student", "teacher"), _arm(tmp_path, "teacher"), _arm(tmp_path, "z")]
    problems, events = pool(runs, 1, code)
    log = tmp_path / "jobs/d-teacher-seed0.log"
    assert sorted(problems) == [
        "d, student, seed 0: needs the run of teacher, which failed",
        f"d, teacher, seed 0: data.root=x: missing; its log: {log}",
    ]
    assert "z ends" in events and "student starts" not in events


def test_a_run_that_is_listed_before_its_failed_teacher_is_not_started(pool, tmp_path):
    runs = [_arm(tmp_path, "c", "b"), _arm(tmp_path, "b", "a"), _arm(tmp_path, "a")]
    problems, events = pool(runs, 1, {"a": "os._exit(1)"})
    assert len(problems) == 3 and events == ["a starts"]


def test_the_first_of_runs_that_need_each_other_reports_it(pool, tmp_path):
    runs = [_arm(tmp_path, "a", "b"), _arm(tmp_path, "b", "a")]
    problems, events = pool(runs, 2, {"a": "os._exit(1)"})
    assert len(problems) == 2 and events == ["a starts"]


def test_a_killed_run_and_one_without_results_have_failed(pool, tmp_path):
    code = {"a": "os.kill(os.getpid(), 9)", "b": "os._exit(0)"}
    problems, _ = pool([_arm(tmp_path, "a"), _arm(tmp_path, "b")], 1, code)
    assert "its process was killed by signal 9" in problems[0]
    assert "it has written nothing" in problems[1]


def test_each_run_has_its_part_of_cores_and_a_gpu(pool, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    monkeypatch.setattr(side_by_side, "available_cores", lambda: 9)
    names = "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"
    code = f"print(*[os.environ[name] for name in {names}], flush=True); time.sleep(0.3)"
    runs = [_arm(tmp_path, "a"), _arm(tmp_path, "b", workers=1), _arm(tmp_path, "c", workers=8)]
    assert pool(runs, 3, code)[0] == []
    logs = [(tmp_path / f"jobs/d-{name}-seed0.log").read_text().split() for name in "abc"]
    # nine cores by three; one core for each loading process, and one at least
    assert logs == [["3", "3"], ["2", "GPU-5"], ["1", "3"]]


def test_a_stop_lets_all_runs_write_their_state(pool, tmp_path):
    code = {
        "a": "pass",
        "b": "import signal, sys\n"
        "def stop(*args):\n    open(FOLDER.split('/d/')[0] + '/state', 'w'); sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, stop); time.sleep(20)",
    }

    def after():
        time.sleep(0.3)
        raise StopAsked

    with pytest.raises(StopAsked):
        pool([_arm(tmp_path, "a"), _arm(tmp_path, "b")], 2, code, after)
    assert (tmp_path / "state").exists()


# --- Whole studies ---

STUDY = """
seeds: [0]
datasets: {clips: base.yaml}
common: [train.epochs=1, eval.name=study, "eval.threats=[linf-0,linf-4/255]", device=cpu]
baseline: simclr
arms:
  student: [method.name=distill, "method.teacher={simclr}"]
  simclr: []
  wrong: [method.name=supcon, train.batch_size=99]
"""
WORDS = ("--cfg", "study.yaml", "--output-dir", "out")


@pytest.fixture(scope="module")
def place(tmp_path_factory, ucf):
    """Return a function that makes a folder with the study; its name is that of all others."""

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        cfg = config.to_yaml(config.loads("", tiny(f"data.root={ucf}")))
        (folder / "base.yaml").write_text(cfg)
        (folder / "study.yaml").write_text(STUDY)
        return folder

    return make


@pytest.fixture(scope="module")
def in_turn(place, whole_reports):
    """Run the study in this process: the student after its teacher, which it does not order."""
    folder = place("in_turn")
    for arms in ("simclr", "student,wrong"):
        tool("study", *WORDS, "--arms", arms, cwd=folder)
    return folder


def _assert_same(folder: Path, other: Path) -> None:
    """Check that two studies have the same weights, rows, summaries and reports."""
    names = ("backbone.pt", "results.jsonl", "summary.json", "study.json", "study.md")
    files = [file.relative_to(other) for name in names for file in other.glob(f"out/**/{name}")]
    assert len(files) == 2 * 3 + 2
    for file in files:
        assert (folder / file).read_bytes() == (other / file).read_bytes(), file


@pytest.mark.slow
def test_two_jobs_give_the_bytes_of_runs_in_turn(place, in_turn, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    folder = place("jobs")
    done = tool("study", *WORDS, "--jobs", "2", cwd=folder)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "1 of 3 runs failed; the first: clips, wrong, seed 0: train.batch_size=99 is" in last
    _assert_same(folder, in_turn)
    status = tool("status", "out", "--json", cwd=folder)
    (study,) = [row for row in json.loads(status.stdout) if row["kind"] == "study"]
    assert (study["done"], study["total"]) == (2, 3)
    # finished runs are not repeated
    again = tool("study", *WORDS, "--jobs", "2", "--arms", "simclr,student", cwd=folder)
    assert again.returncode == 0 and "started" not in again.stderr


@pytest.mark.slow
def test_slurm_runs_an_array_after_that_of_its_teachers_and_then_the_report(place, in_turn):
    """The commands of Slurm are imitated, and start real processes with its variables."""
    folder = place("slurm")
    slurm = folder / "slurm"
    words = [*WORDS, "--executor", "slurm", "--jobs", "2", "--time", "60"]
    process = Process(
        [REPO / "tools/study.py", *words],
        cwd=folder,
        env={**ENV, **fake_slurm.install(slurm)},
    )
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 0, errors
    fake_slurm.wait_for(slurm, "3", 240)
    first, second, report = [(slurm / f"{number}.job").read_text() for number in (1, 2, 3)]
    assert "--array='0-1%2'" in first or "--array=0-1%2" in first
    assert "dependency=afterany:1\n" in second and "--array" not in second
    assert "dependency=afterany:2\n" in report
    logs = "".join(path.read_text() for path in folder.glob("out/jobs/*_log.err"))
    assert "train.batch_size=99 is larger than the data set" in logs
    _assert_same(folder, in_turn)


def test_slurm_that_is_missing_is_reported_with_the_commands(place, monkeypatch):
    monkeypatch.setenv("PATH", "")
    words = ("--executor", "slurm", "--jobs", "4", "--time", "60", "--gpus", "1")
    folder = place("none")
    done = tool("study", *WORDS, *words, cwd=folder)
    assert done.returncode == 1 and "this machine has no sbatch" in done.stderr
    commands = [line for line in done.stdout.splitlines() if line.startswith("# vidrobust study")]
    jobs = [command.rpartition("--job ")[2] for command in commands]
    assert jobs == [f"clips/{arm}/seed0" for arm in ("student", "simclr", "wrong")]
    assert not (folder / "out").exists()


def test_the_report_of_slurm_has_the_files_that_are_asked_for(place, monkeypatch):
    submitted = []

    class Executor:
        def submit(self, command):
            submitted.append(command.words)
            return SimpleNamespace(job_id="1")

    monkeypatch.setattr(cluster_jobs, "has_slurm", lambda: True)
    monkeypatch.setattr(cluster_jobs, "require_slurm", lambda args: None)
    monkeypatch.setattr(cluster_jobs, "executor", lambda *args, **more: Executor())
    folder = place("extra")
    args = Namespace(cfg="study.yaml", output_dir=folder / "out", data=[], seeds="", overrides=[])
    study._submit(Namespace(**vars(args), csv=True, latex=True, records="R"), [], [])
    study._submit(Namespace(**vars(args), csv=False, latex=False, records=None), [], [])
    assert [words[-4:] for words in submitted] == [
        ("--report-only", "--csv", "--latex", "--records=R"),
        ("study.yaml", "--output-dir", str(folder / "out"), "--report-only"),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--jobs", "0"], "--jobs 0: must be at least 1"),
        (["--executor", "slurm"], "--time: give the time limit of a job in minutes"),
        (["--nodes", "-5"], "--nodes -5: --executor local does not use it"),
        (["--jobs", "2", "--gpus", "3"], "--gpus 3: --executor local does not use it"),
        (["--setup", "module load x"], "--setup module load x: --executor local does not use it"),
        (["--job", "clips/x/seed0"], "--job clips/x/seed0: no run of study.yaml"),
    ],
)
def test_wrong_options_of_jobs_are_refused(place, words, message):
    done = tool("study", *WORDS, *words, cwd=place("refused"))
    assert done.returncode == 1 and message in done.stderr


def test_a_report_can_be_written_alone(in_turn):
    text = (in_turn / "out/study.md").read_bytes()
    (in_turn / "out/study.md").unlink()
    done = tool("study", *WORDS, "--report-only", cwd=in_turn)
    assert done.returncode == 0, done.stderr
    assert (in_turn / "out/study.md").read_bytes() == text


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_the_runs_of_a_study_that_ends_write_their_state_and_end(place, number):
    folder = place("ends")
    words = ("--arms", "simclr", "--seeds", "0,1", "train.epochs=4000")
    process = Process(
        [REPO / "tools/study.py", *WORDS, "--jobs", "2", *words],
        cwd=folder,
        start_new_session=True,
    )
    runs = [folder / f"out/clips/simclr/seed{seed}" for seed in (0, 1)]
    try:
        wait_until(lambda: all((run / "metrics.jsonl").exists() for run in runs), process)
        time.sleep(1)
        os.kill(process.pid, number)
        status = process.wait(60)
        end = time.monotonic() + 30
        while session(process.pid):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert status == (EXIT_STOPPED if number == signal.SIGTERM else -signal.SIGKILL)
        assert all(checkpoint.read_checkpoint(run)["step"] > 0 for run in runs)
    finally:
        if session(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def test_seeds_of_one_study_compute_in_one_precision(tmp_path):
    """With train.amp=auto, channels_last decides on a CPU whether a run computes in bf16."""
    for amp, order, result in (
        ("auto", "true", pytest.raises(UserError, match="channels_last")),
        ("fp32", "true", nullcontext()),
        ("auto", "auto", nullcontext()),  # the default, which was another one
    ):
        before = config.loads("", ["train.channels_last=false", f"train.amp={amp}"])
        folder = tmp_path / f"{amp} {order}"
        folder.mkdir()
        (folder / "config.yaml").write_text(config.to_yaml(before))
        after = replace(before, train=replace(before.train, channels_last=order))
        with result:
            require_same(Arm("d", "a", 0, after, folder, ()))
