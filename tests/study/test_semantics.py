"""The study of Ge et al. 2021: options of a data set, and cues and shift in the report."""

import json
import shutil

import pytest

from tests.helpers import REPO, tiny, tiny_ucf101, tool
from tests.processes import TWO_RANKS, run
from tests.study.helpers import study_page
from vidrobust import config
from vidrobust.study import plan, read_study
from vidrobust.utils.errors import UserError

PAGE = """
seeds: [0]
datasets: {clips: base.yaml}
options: {clips: ["data.twins=${data.root}_texture", "eval.bias=[texture,freeze,swapped]"]}
common: [train.epochs=1, eval.name=study, "eval.threats=[linf-0]",
         eval.shift.name=class_folder, eval.shift.root=other]
baseline: moco
arms:
  moco: []
  texture: ["method.negatives.names=[texture]"]
"""


def test_options_of_a_data_set_apply_to_its_runs(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    assert (
        tool(
            "prepare", "texture", f"data.root={root}", "--output", "data_texture", cwd=tmp_path
        ).returncode
        == 0
    )
    shutil.copytree(root / "videos", tmp_path / "other")
    words = tiny(f"data.root={root}", "method.name=moco", "method.queue=8")
    (tmp_path / "base.yaml").write_text(config.to_yaml(config.loads("", words)))
    (tmp_path / "study.yaml").write_text(PAGE)
    done = tool("study", "--cfg", "study.yaml", "--output-dir", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    arms = json.loads((tmp_path / "out/study.json").read_text())["clips"]
    for arm in ("moco", "texture"):
        summary = json.loads(
            (tmp_path / f"out/clips/{arm}/seed0/eval/study/summary.json").read_text()
        )
        views = summary["bias"]["views"]
        assert arms[arm]["acc freeze"]["mean"] == views["freeze"]["acc"]
        assert arms[arm].get("bias swapped", {"mean": None})["mean"] == views["swapped"]["bias"]
        assert arms[arm]["shift"]["mean"] == summary["shift"]["acc"]
    text = (tmp_path / "out/study.md").read_text()
    assert (
        "| arm | shift | clean | texture | freeze | swapped |" in text
        and "two cues that disagree" in text
    )


def test_options_that_the_evaluation_refuses_are_reported_before_training(tmp_path):
    """A slash at the end of the data set's folder does not end up in the folder of its textures."""
    study_page(tmp_path, PAGE)
    root = tmp_path / "data"
    done = tool(
        "study", "--cfg", "study.yaml", "--arms", "moco", "--data", f"clips={root}/", cwd=tmp_path
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        f"data.twins={root}_texture: no such folder; python datasets/prepare.py texture makes it"
        in done.stderr
    )
    assert not (tmp_path / "outputs/study/clips").exists()


def test_all_ranks_continue_with_the_next_arm_after_an_error(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    (tmp_path / "base.yaml").write_text(
        config.to_yaml(config.loads("", tiny(f"data.root={root}", "device=cpu")))
    )
    page = PAGE.replace("eval.shift.name=class_folder, eval.shift.root=other", "train.max_steps=1")
    (tmp_path / "study.yaml").write_text(
        page.replace("  moco: []", '  moco: []\n  plain: ["eval.bias=[]"]')
    )
    words = ["--cfg", "study.yaml", "--arms", "moco,plain"]
    done = run([*TWO_RANKS, REPO / "tools/study.py", *words], cwd=tmp_path, timeout=120)
    assert (
        done.returncode == 1
        and "1 of 2 runs failed" in done.stderr
        and "no such folder" in done.stderr
    )
    assert (tmp_path / "outputs/study/clips/plain/seed0/eval/study/summary.json").is_file()


def test_options_of_an_unknown_data_set_are_refused(tmp_path):
    (tmp_path / "study.yaml").write_text(PAGE.replace("options: {clips:", "options: {clip:"))
    with pytest.raises(UserError, match="options: no data set 'clip'; did you mean 'clips'"):
        read_study(tmp_path / "study.yaml")


def test_the_config_file_has_the_arms_of_ge_et_al_2021_with_alpha_1_to_3(tmp_path):
    study = read_study(REPO / "configs/study_semantics.yaml")
    runs = plan(study, tmp_path, roots={"cifar10": "/c", "ucf101": "/u"})
    assert len(runs) == 3 * (7 + 13 + 13)
    by_name = {(run.dataset, run.name): run.cfg for run in runs if run.seed == 0}
    assert by_name["cifar10", "texture_3"].data.twins == "/c_texture"
    assert by_name["ucf101", "freeze_3"].method.negatives.names == ["freeze"]
    assert by_name["ucf101", "temporal_2"].method.negatives.alpha == 2
    assert {cfg.method.temperature for cfg in by_name.values()} == {0.2}, (
        "the published values of alpha are for this temperature"
    )
    drawn = by_name["motionshapes", "moco"]
    assert drawn.data.motionshapes.texture_correlation == 0.9 and drawn.data.twins.endswith(
        "/motionshapes90_texture"
    )
    assert drawn.eval.shift.fold == 2 and drawn.method.queue <= 320
