"""Options of arms are chosen on held-out training videos, one after the other."""

import json

import pytest

from tests.helpers import tiny, tiny_ucf101, tool
from vidrobust import config
from vidrobust.study import plan, read_study
from vidrobust.study.tuned_runs import progress, tuning_lines, write_tuning
from vidrobust.utils.errors import UserError

PAGE = """
seeds: [0]
datasets: {clips: base.yaml}
common: [train.epochs=2, eval.name=study, "eval.threats=[]"]
baseline: simclr
arms:
  simclr: []
  supcon: [method.name=supcon]
  fixed: [method.false_negatives.rule=fixed, optim.lr=0.07]
tune:
  options: [data.validation=0.5, train.epochs=1]
  grid:
    simclr: {method.temperature: [0.1, 0.2], optim.lr: [0.05, 0.2]}
    fixed: {as: simclr, method.false_negatives.threshold: [0.5, 0.9]}
"""
GRID = "simclr: {method.temperature: [0.1, 0.2], optim.lr: [0.05, 0.2]}"


@pytest.fixture
def page(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    words = tiny(f"data.root={root}", "train.batch_size=2")
    (tmp_path / "base.yaml").write_text(config.to_yaml(config.loads("", words)))
    (tmp_path / "study.yaml").write_text(PAGE)
    return tmp_path / "study.yaml"


def chosen(page, accuracies, failed=()):
    """All states until everything is chosen: the names of the runs that each waits for."""
    study = read_study(page)
    finished = {}
    states = []
    while True:
        state = progress(study, page.parent, (), {}, lambda run: finished.get(run.folder), failed)
        states.append([f"{run.folder.parent.name}: {run.folder.name}" for run in state.waiting])
        if not state.waiting:
            return states, state
        for run in state.waiting:
            assert run.cfg.data.validation == 0.5 and run.cfg.train.epochs == 1
            assert run.seed == run.cfg.seed == 1000
            finished[run.folder] = accuracies(run.cfg)


def test_each_option_is_chosen_with_those_before_it(page):
    def accuracy(cfg):
        return 0.5 + 0.1 * (cfg.method.temperature == 0.2) + 0.01 * (cfg.optim.lr == 0.05)

    states, state = chosen(page, accuracy)
    lr = plan_lr(page)
    assert states == [
        [f"simclr: temperature=0.1,lr={lr}", f"simclr: temperature=0.2,lr={lr}"],
        ["simclr: temperature=0.2,lr=0.05", "simclr: temperature=0.2,lr=0.2"],
        # what is taken over is in the name: another choice of it is another run
        [f"fixed: temperature=0.2,lr=0.05,threshold={value}" for value in (0.5, 0.9)],
        [],
    ]
    assert state.is_complete
    assert state.choices["clips"]["simclr"] == {"method.temperature": 0.2, "optim.lr": 0.05}
    # its own option of the rate gives way; of equal accuracies the first counts
    assert state.choices["clips"]["fixed"] == {
        "method.temperature": 0.2,
        "optim.lr": 0.05,
        "method.false_negatives.threshold": 0.5,
    }


def test_lists_and_slashes_in_the_names_of_folders(page):
    grid = "simclr: {method.adversary.threats: [[linf-2/255], [linf-4/255, l2-1]]}"
    page.write_text(
        PAGE.replace(GRID, grid).replace("simclr: []", "simclr: [method.adversary.name=clae]")
    )
    states, state = chosen(page, lambda cfg: len(cfg.method.adversary.threats) / 4)
    assert states[0] == ["simclr: threats=linf-2_255", "simclr: threats=linf-4_255+l2-1"]
    best = {"method.adversary.threats": ["linf-4/255", "l2-1"]}
    assert state.choices["clips"]["simclr"] == best


def plan_lr(page):
    return config.load(page.parent / "base.yaml").optim.lr


def test_a_choice_at_the_end_of_its_values_is_marked(page, tmp_path):
    page.write_text(PAGE.replace("[0.5, 0.9]", "[0.5, 0.7, 0.9]"))

    def accuracy(cfg):
        return 1 - abs(cfg.method.false_negatives.threshold - 0.7) - cfg.optim.lr

    _, state = chosen(page, accuracy)
    # fixed takes over the rate, which is at an end, and chooses the middle threshold
    assert state.ends["clips"] == {"simclr": ["method.temperature", "optim.lr"]}
    write_tuning(tmp_path, state)
    text = "\n".join(tuning_lines(tmp_path))
    assert "optim.lr=0.05 (end)" in text and "method.false_negatives.threshold=0.7 |" in text
    names = GRID.replace("[0.1, 0.2]", "[0.2]").replace("[0.05, 0.2]", "[0.2]")
    page.write_text(page.read_text().replace(GRID, names))
    _, state = chosen(page, accuracy)
    assert state.ends["clips"] == {}  # of one value there is no end


def test_a_value_that_was_run_before_is_not_run_again(page):
    page.write_text(PAGE.replace("optim.lr: [0.05, 0.2]", f"optim.lr: [{plan_lr(page)}, 0.2]"))
    states, _ = chosen(page, lambda cfg: 0.5)
    assert states[1] == ["simclr: temperature=0.1,lr=0.2"]


def test_accuracies_of_tuning_json_count_only_for_the_same_rule(page, tmp_path):
    _, state = chosen(page, lambda cfg: 1 - cfg.optim.lr)
    write_tuning(page.parent, state)

    def waits(*overrides):
        study = read_study(page)
        now = progress(study, page.parent, overrides, {}, lambda run: None)
        return [run.folder.name for run in now.waiting]

    assert waits() == []
    assert len(waits("optim.weight_decay=0.1")) == 2
    page.write_text(page.read_text().replace("train.epochs=1]", "train.epochs=3]"))
    assert len(waits()) == 2
    # another choice of simclr's, so that fixed, which takes it over, is chosen for anew
    page.write_text(PAGE.replace("optim.lr: [0.05, 0.2]", "optim.lr: [0.05, 0.2, 0.01]"))
    lr = plan_lr(page)
    assert waits() == ["temperature=0.1,lr=0.01"]
    states, state = chosen(page, lambda cfg: 1 - cfg.optim.lr)
    assert states[-2] == [f"fixed: temperature=0.1,lr=0.01,threshold={v}" for v in (0.5, 0.9)]
    assert lr != 0.01 and state.choices["clips"]["fixed"]["optim.lr"] == 0.01


def test_an_arm_that_is_no_longer_chosen_for_keeps_its_own_options(page):
    _, state = chosen(page, lambda cfg: 1 - cfg.optim.lr)
    write_tuning(page.parent, state)
    fixed = "    fixed: {as: simclr, method.false_negatives.threshold: [0.5, 0.9]}\n"
    page.write_text(PAGE.replace(fixed, ""))
    runs = {run.name: run.cfg for run in plan(read_study(page), page.parent)}
    assert runs["simclr"].optim.lr == 0.05 and runs["fixed"].optim.lr == 0.07


def test_the_next_option_is_chosen_after_a_run_has_failed(page):
    grid = "simclr: {optim.lr: [1e30, 0.05], method.temperature: [0.1, 0.2]}"
    fixed = "    fixed: {as: simclr, method.false_negatives.threshold: [0.5, 0.9]}\n"
    page.write_text(PAGE.replace(GRID, grid).replace(fixed, ""))
    done = tool("study", "--cfg", page, "--output-dir", "out", "--tune", cwd=page.parent)
    assert done.returncode == 0, done.stderr
    assert "1 runs failed, and their values are not chosen" in done.stderr
    entry = json.loads((page.parent / "out/tuning.json").read_text())["clips"]["simclr"]
    assert entry["options"]["optim.lr"] == 0.05
    # with the temperature of the config file first; the run that failed has none
    tried = {f"lr=0.05,temperature={value}" for value in (0.5, 0.1, 0.2)}
    assert set(entry["accuracies"]) == tried


def test_failed_runs_are_not_chosen_and_all_failing_is_an_error(page):
    folder = page.parent / "tune/clips/simclr"
    lr = plan_lr(page)
    first = folder / f"temperature=0.1,lr={lr}"

    def accuracy(cfg):
        return None if cfg.method.temperature == 0.1 else 0.1

    _, state = chosen(page, accuracy, failed={first})
    assert state.choices["clips"]["simclr"]["method.temperature"] == 0.2
    both = {first, folder / f"temperature=0.2,lr={lr}"}
    with pytest.raises(UserError, match="clips, simclr: all runs that choose method.temperature"):
        chosen(page, lambda cfg: None, failed=both)


def test_a_study_chooses_before_its_runs_and_reports_what(page):
    folder = page.parent
    words = ("--cfg", page, "--output-dir", "out")
    early = tool("study", *words, cwd=folder)
    assert early.returncode == 1 and "run the same command with --tune" in early.stderr
    listed = tool("study", *words, "--tune", "--dry-run", cwd=folder)
    assert listed.stdout.count("# clips, simclr temperature=") == 2
    done = tool("study", *words, "--tune", cwd=folder)
    assert done.returncode == 0, done.stderr
    tuning = json.loads((folder / "out/tuning.json").read_text())["clips"]
    assert len(tuning["simclr"]["accuracies"]) in (3, 4)
    best = max(tuning["fixed"]["accuracies"].values())
    threshold = tuning["fixed"]["options"]["method.false_negatives.threshold"]
    (label,) = (key for key in tuning["fixed"]["accuracies"] if key.endswith(f"={threshold}"))
    assert tuning["fixed"]["accuracies"][label] == best
    runs = {run.name: run.cfg for run in plan(read_study(page), folder / "out")}
    options = tuning["simclr"]["options"]
    assert runs["simclr"].optim.lr == runs["fixed"].optim.lr == options["optim.lr"]
    assert runs["fixed"].method.temperature == options["method.temperature"]
    assert runs["fixed"].train.epochs == 2 and not runs["fixed"].data.validation
    assert runs["supcon"].optim.lr == plan_lr(page)
    report = tool("study", *words, "--arms", "simclr", cwd=folder)
    assert report.returncode == 0, report.stderr
    text = (folder / "out/study.md").read_text()
    assert "chosen on held-out training videos" in text and f"threshold={threshold}" in text
    # runs that are finished are not repeated
    again = tool("study", *words, "--tune", cwd=folder)
    assert again.returncode == 0 and "started in" not in again.stderr
    (folder / "out/tuning.json").write_text('{"clips": {"simclr": 1}}')
    damaged = tool("study", *words, "--dry-run", cwd=folder)
    assert damaged.returncode == 1 and "is damaged" in damaged.stderr


@pytest.mark.parametrize(
    "old,new,message",
    [
        ("as: simclr", "as: fixed", "as=fixed: must be an arm of the grid above it"),
        ("[0.5, 0.9]", "0.5", "method.false_negatives.threshold: must be a list of values"),
        ("    fixed:", "    fixd:", "tune: no arm 'fixd'; did you mean 'fixed'"),
        (GRID, "simclr: 3", "simclr: must be a mapping of options"),
        ("  options: [data.validation=0.5, ", "  options: [", "must hold out videos"),
        ("  options: [data", "  seed: -1\n  options: [data", "seed=-1: must be a whole number"),
        ("  options:", "  option:", "unknown key 'option'; did you mean 'options'"),
    ],
)
def test_what_cannot_be_chosen_is_refused(page, old, new, message):
    page.write_text(PAGE.replace(old, new))
    with pytest.raises(UserError) as error:
        chosen(page, lambda cfg: 0.5)
    assert message in str(error.value)
