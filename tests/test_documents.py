"""Every command of README and docs runs, every link leads somewhere, and the demo keeps its
promise.
"""

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from tests.helpers import (
    REPO,
    SHARED,
    needs_ucf101_mini,
    tiny,
    tiny_cifar10,
    tiny_hmdb51,
    tiny_kinetics,
    tiny_ucf101,
    tool,
)
from vidrobust import config
from vidrobust.cli.document import Table
from vidrobust.corruptions import BENCHMARKS, CORRUPTIONS

# the demo is drawn and counted, as users see it
pytestmark = pytest.mark.usefixtures("whole_reports")

PAGES = [
    REPO / "README.md",
    *sorted(REPO.glob("docs/**/*.md")),
    *sorted(REPO.glob("datasets/**/README.md")),
]


def _commands(page: Path) -> list[str]:
    """Indented lines of a page that run our tools, continued lines joined."""
    text = page.read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    return [
        " ".join(line.split()) for line in lines if re.search(r"tools/|datasets/prepare.py", line)
    ]


OVERVIEW = REPO / "docs/results/README.md"
RESULTS = sorted(REPO.glob("docs/results/*.md"))
# pages that begin with a question and its answer
ANSWERS = [*RESULTS, *sorted(REPO.glob("docs/benchmarks*.md"))]


def _paragraph(page: Path) -> str:
    """Return the first paragraph after the heading of a page, as one line."""
    return " ".join(page.read_text().split("\n\n")[1].split())


COMMANDS = sorted({command for page in PAGES for command in _commands(page)})


def test_there_are_commands_to_test():
    assert len(COMMANDS) >= 6, COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_commands_parse_and_name_real_options(command, tmp_path):
    words = re.split(r"tools/|datasets/(?=prepare.py)", command, maxsplit=1)[1].split()
    name, args = (
        words[0].removesuffix(".py"),
        [w.replace("configs/", f"{REPO}/configs/").strip('"') for w in words[1:] if w != "..."],
    )
    if name in ("train_net", "prepare", "benchmark", "visualize", "study", "submit") and not {
        "--checkpoint",
        "--replay",
    } & set(args):
        done = tool(name, *args, "--dry-run", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    else:
        before = zip(["", *args], args, strict=False)
        overrides = [w for last, w in before if "=" in w and last != "--fail-under"]
        assert config.loads("", overrides)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's command with fewer steps and smaller data: the same code from end to end."""
    top = tmp_path_factory.mktemp("demo")
    small = [
        "train.max_steps=3",
        "eval.steps=2",
        "train.batch_size=8",
        "data.workers=0",
        "eval.clips=2",
        "data.motionshapes.train_per_class=3",
        "data.motionshapes.test_per_class=2",
    ]
    done = tool("train_net", "--cfg", REPO / "configs/demo.yaml", *small, cwd=top)
    assert done.returncode == 0, done.stderr
    return top


def test_the_demo_leaves_what_the_docs_list(demo):
    page = (REPO / "docs/running.md").read_text()
    listed = re.search(r"    outputs/demo/\n((?:      .*\n)+)", page)[1]
    assert (
        tool(
            "extract_features", "--checkpoint", "outputs/demo", "data.workers=0", cwd=demo
        ).returncode
        == 0
    )
    for line in listed.splitlines():
        names = line.strip().split("   ")[0].split("  ")
        folder = Path(names[0]).parent
        for name in names:
            path = folder / name if "/" not in name else Path(name)
            assert list((demo / "outputs/demo").glob(str(path).rstrip("/"))), path


def test_the_readmes_measuring_commands_run_on_it(demo):
    for words in (
        ["eval.name=pgd-50", "eval.steps=3", "eval.restarts=2"],
        ["eval.name=swapped", "data.fold=2"],
    ):
        done = tool("test_net", "--checkpoint", "outputs/demo", "data.workers=0", *words, cwd=demo)
        assert done.returncode == 0, done.stderr
    swapped = json.loads((demo / "outputs/demo/eval/swapped/summary.json").read_text())
    assert swapped["split"] == "test, fold 2" and swapped["n"] == 16


def test_the_report_shows_what_it_should(demo):
    folder = demo / "outputs/demo/eval/pgd"
    text, summary = (
        (folder / "report.md").read_text(),
        json.loads((folder / "summary.json").read_text()),
    )
    assert "| linear probe |" in text and "random weights" in text and "chance 12.5 %" in text
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (folder / picture).stat().st_size > 5000
    assert {
        "dataset",
        "split",
        "n",
        "clean_acc",
        "robust_acc",
        "robust_acc_uint8",
        "ci95",
        "threat",
        "suite",
        "unit",
        "branch",
        "views",
        "checkpoint",
        "config_sha",
        "manifest_sha",
        "warnings",
    } <= summary.keys()
    assert (
        summary["curve"][0]["eps"] == 0
        and summary["curve"][0]["robust_acc"] == summary["clean_acc"]
    )
    assert len((folder / "predictions.jsonl").read_text().splitlines()) == 16


def test_the_features_are_what_the_readme_says(demo):
    assert (
        tool(
            "extract_features",
            "--checkpoint",
            "outputs/demo",
            "--per-video",
            "--output",
            "v.npz",
            "data.workers=0",
            cwd=demo,
        ).returncode
        == 0
    )
    with (
        np.load(demo / "v.npz") as one,
        np.load(demo / "outputs/demo/features/test.npz") as all_clips,
    ):
        assert all_clips["features"].shape == (32, 64) and all_clips["features"].dtype == np.float32
        assert np.allclose(
            all_clips["features"].reshape(16, 2, 64).mean(1), one["features"], atol=1e-5
        )
        assert all_clips["clip_index"].tolist() == [0, 1] * 16 and (all_clips["fps"] == 25).all()
        assert all_clips["start_frame"][:2].tolist() == [0, 21] and one["uids"][0].endswith(".avi")
        assert json.loads(str(one["meta"]))["classes"][0] == "Bounce"


def test_the_python_example_runs(tmp_path, monkeypatch):
    (measure,) = re.findall(r"```python\n(.*?)```", (REPO / "README.md").read_text(), re.S)
    # a smaller network, fewer and smaller clips
    monkeypatch.chdir(tmp_path)
    root = tiny_ucf101(tmp_path / "data")
    torch.save(torchvision.models.resnet18(num_classes=2).state_dict(), "my.pth")
    options = {"data.size": 32, "data.short_side": 36, "data.workers": 0, "eval.steps": 2}
    for old, new in (
        ("torchvision:r2plus1d_18", "torchvision:resnet18"),
        ("/path/to/ucf101", str(root)),
        ('["linf-2/255"]', f'["linf-2/255"], options={options}'),
    ):
        assert old in measure
        measure = measure.replace(old, new)
    names = {}
    exec(compile(measure, "README.md", "exec"), names)
    assert (names["report"].path / "report.md").is_file()


def test_the_examples_of_the_threat_models_run():
    """They are one program, on a model, clips and an encoder of the reader's."""
    torch.manual_seed(0)
    net = (
        torch.nn.Sequential(torch.nn.Flatten(1), torch.nn.Linear(3 * 16 * 64, 101))
        .eval()
        .requires_grad_(False)
    )
    x = torch.rand(3, 3, 16, 8, 8)
    names = {"model": net, "x": x, "y": net(x).argmax(1), "encode": lambda v: net(v)[:, :8]}
    code = re.findall(
        r"```python\n(.*?)```", (REPO / "docs/threat_models.md").read_text(), re.DOTALL
    )
    exec(compile("\n".join(code), "threat_models.md", "exec"), names)
    assert (
        len(code) == 2 and names["outcome"].passes and names["curve"][0.5] >= names["curve"][8] == 0
    )
    assert names["delta"].shape == (1, 3, 16, 8, 8) and names["doubts"] == []


def test_the_example_of_corruptions_runs():
    code = re.search(r"```python\n(.*?)```", (REPO / "docs/corruptions.md").read_text(), re.S)[1]
    names: dict = {}
    exec(compile(code, "corruptions.md", "exec"), names)
    assert names["foggy"].shape == names["some"].shape == (16, 112, 112, 3)


def test_the_examples_of_features_run(demo, monkeypatch, capsys):
    """They read files of this package, and find the clips that a full sort finds."""
    words = ("--format", "npy", "--output", "features/train.npy", "data.workers=0")
    done = tool("extract_features", "--checkpoint", "outputs/demo", *words, cwd=demo)
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(demo)
    code = re.findall(r"```python\n(.*?)```", (REPO / "docs/features.md").read_text(), re.S)
    assert len(code[0].strip().splitlines()) == 1 + 1 + 3, "an import and three lines"
    names: dict = {}
    exec(compile("\n".join(code), "features.md", "exec"), names)
    assert (names["table"]["label"] == 3).sum() == len(names["rows"]) > 0
    index = names["index"]
    assert np.allclose(np.linalg.norm(index, axis=1), 1, atol=1e-5)
    found = names["nearest"](index[5:7], 4)
    similarity = index[5:7] @ index.T
    best = -np.sort(-similarity, axis=1)[:, :4]
    assert np.allclose(np.take_along_axis(similarity, found, 1), best, atol=1e-6)
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_the_page_on_corruptions_names_them_all():
    text = (REPO / "docs/corruptions.md").read_text()
    assert not [name for name in (*CORRUPTIONS, *BENCHMARKS) if f"`{name}`" not in text]


def test_the_api_page_names_functions_that_hide_behind_their_file():
    """The site shows what a package exports, but for a name that is also a file of it."""
    text = (REPO / "docs/api.md").read_text()
    for package in re.findall(r"(?m)^::: vidrobust\.(\w+)$", text):
        exported = getattr(importlib.import_module(f"vidrobust.{package}"), "__all__", [])
        for name in exported:
            if (REPO / f"vidrobust/{package}/{name}.py").is_file():
                assert f"::: vidrobust.{package}.{name}.{name}\n" in text


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_links_to_sections_name_a_heading_of_their_page():
    for page in PAGES:
        for target, section in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
            text = (page.parent / target if target else page).read_text()
            headings = re.findall(r"(?m)^#+ (.*)$", text)
            anchors = [re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in headings]
            assert section in anchors, f"{page.name}: {target}#{section}"


def test_the_walks_name_files_of_the_package():
    rows = re.findall(
        r"(?m)^\| \d+ \| `(\w[\w/]*\.py)` \|", (REPO / "docs/architecture.md").read_text()
    )
    assert len(rows) == 15 + 13
    assert [row for row in rows if not (REPO / "vidrobust" / row).is_file()] == []


@pytest.mark.parametrize("page", ANSWERS, ids=lambda page: page.name)
def test_pages_of_results_are_short(page):
    assert len(page.read_text().splitlines()) <= (200 if page == OVERVIEW else 150)


@pytest.mark.parametrize("page", ANSWERS, ids=lambda page: page.name)
def test_pages_of_results_begin_with_a_question_and_a_sentence_that_answers_it(page):
    assert re.match(r"# .*\?\n\n", page.read_text())
    # prose, not a table, list, picture, command or generated part
    assert re.match(r"[A-Z].*\.$", _paragraph(page))


def test_the_overview_of_results_quotes_every_page():
    studies = json.loads(OVERVIEW.with_suffix(".json").read_text())["studies"]
    pages = []
    for question, answer, _, _, link in studies["rows"]:
        page = OVERVIEW.parent / re.search(r"\((.*)\)", link)[1]
        assert page.read_text().startswith(f"# {question}\n")
        assert _paragraph(page).startswith(answer)
        pages.append(page)
    assert sorted([*pages, OVERVIEW]) == RESULTS


def test_a_table_of_results_writes_numbers_as_its_formats_say():
    table = Table(
        columns=["arm", "clean", "n", "broken by"],
        rows=[["a", [44.52, 4.0], 1500, {"PGD": 3, "FAB": 1}], ["b", 3.0, None, {}]],
        format="{:.1f} ± {:.1f}",
        formats={"n": "{:,}"},
        bold={"a": ["clean"]},
        missing="-",
    )
    lines = table.markdown().splitlines()
    assert lines[2] == "| a | **44.5 ± 4.0** | 1,500 | PGD 3, FAB 1 |"
    assert lines[3] == "| b | 3.0 | - | - |"


def test_a_table_of_results_refuses_numbers_that_do_not_fit_the_format():
    table = Table(columns=["arm", "clean"], rows=[["a", [1, 2, 3]]], format="{} ± {}")
    with pytest.raises(ValueError, match="does not fit"):
        table.markdown()


def test_nothing_is_left_to_fill_in():
    for page in PAGES:
        assert not re.search(r"\b(TABLE|RATIO|TODO|TBD|XXX|FIXME)\b", page.read_text()), page


def test_ci_runs_the_readmes_test_command():
    assert "pip install -e '.[test]' && pytest" in (REPO / "README.md").read_text()
    done = subprocess.run(["bash", "-n", str(REPO / ".ci/run")], capture_output=True, check=False)
    assert done.returncode == 0


def test_attacks_can_be_used_alone():
    code = (
        "import sys, vidrobust.attacks; print([m for m in sys.modules if"
        " m.startswith('vidrobust.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {".".join(name.split(".")[:2]) for name in eval(done.stdout)} == {"vidrobust.attacks"}


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_nothing_private_is_committed():
    files = subprocess.run(
        ["git", "ls-files"], cwd=REPO, capture_output=True, text=True, check=False
    ).stdout.split()
    for name in files:
        if name.startswith("tests/files/"):  # written by the package
            assert (REPO / name).stat().st_size < 300_000, name
            continue
        assert _may_be_committed(name), name


def _may_be_committed(name: str) -> bool:
    """Return whether a file is source, docs or settings, and no video, weights or log."""
    if name in ("mkdocs.yml", "docs/site.css", "vidrobust/py.typed"):
        return True
    if name.startswith(".github/"):
        return Path(name).suffix in (".yml", ".md")
    if "/report/" in name and name.startswith("vidrobust/"):  # templates of pages, and BibTeX
        return Path(name).suffix in (".py", ".html", ".css", ".js", ".bib", ".json")
    if name.startswith("docs/results/records/"):  # what runs of studies have measured
        return Path(name).suffix == ".jsonl"
    if name.startswith("docs/examples/"):
        return Path(name).suffix in (".html", ".png")
    suffixes = {".py", ".md", ".yaml", ".toml", ".cff", ".json", ".png", ".jpg", ""}
    return Path(name).suffix in suffixes


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("CITATION.cff", True),
        (".pre-commit-config.yaml", True),
        ("vidrobust/py.typed", True),
        (".github/workflows/ci.yml", True),
        (".github/pull_request_template.md", True),
        (".github/log.txt", False),
        ("docs/notes.yml", False),
        ("videos/a.mp4", False),
        ("outputs/demo/backbone.pt", False),
        ("datasets/py.typed", False),
    ],
)
def test_files_of_other_kinds_may_not_be_committed(name, allowed):
    assert _may_be_committed(name) == allowed


@pytest.mark.parametrize("page", ["ucf101_csl", "ucf101_csl_adv", "ucf101_supervised"])
def test_the_ucf101_pages_train_and_report(page, tmp_path):
    """Every page as its first line says, on a tiny data set."""
    root = tiny_ucf101(tmp_path / "data")
    words = tiny(f"data.root={root}", "train.max_steps=2", "optim.lr=0.01")
    done = tool("train_net", "--cfg", REPO / f"configs/{page}.yaml", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"outputs/{page}/eval/pgd/report.md").is_file()


def test_the_hmdb51_page_trains_and_reports(tmp_path):
    root = tiny_hmdb51(tmp_path / "data")
    words = tiny("data.name=hmdb51", f"data.root={root}", "train.max_steps=2", "optim.lr=0.01")
    done = tool("train_net", "--cfg", REPO / "configs/hmdb51_csl.yaml", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "outputs/hmdb51_csl/eval/pgd/summary.json").read_text())
    assert summary["n"] == 4 and summary["split"] == "test, fold 1"


def test_the_kinetics_page_scans_trains_and_reports(tmp_path):
    root = tiny_kinetics(tmp_path / "data")
    page = ("--cfg", REPO / "configs/kinetics400_csl.yaml")
    words = tiny("data.name=kinetics", f"data.root={root}", "train.max_steps=2", "optim.lr=0.01")
    done = tool("train_net", *page, *words, cwd=tmp_path)
    assert done.returncode == 1 and "datasets/prepare.py scan makes one" in done.stderr
    assert tool("prepare", "scan", *page, f"data.root={root}", cwd=tmp_path).returncode == 0
    done = tool("train_net", *page, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        json.loads((tmp_path / "outputs/kinetics400_csl/eval/pgd/summary.json").read_text())["n"]
        == 4
    )


def test_the_cifar10_page_trains_and_reports(tmp_path, monkeypatch):
    root = tiny_cifar10(tmp_path / "data", monkeypatch, per_batch=8)
    words = [
        "model.width=4",
        "train.batch_size=8",
        "train.max_steps=2",
        "optim.lr=0.01",
        "data.workers=1",
        "eval.steps=2",
        "eval.threats=[linf-0,linf-8/255]",
    ]
    done = tool(
        "train_net",
        "--cfg",
        REPO / "configs/cifar10_csl.yaml",
        f"data.root={root}",
        *words,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "outputs/cifar10_csl/eval/pgd/summary.json").read_text())
    assert summary["n"] == 8 and summary["failed"] == []


@pytest.mark.skipif(not (SHARED / "testclips").is_dir(), reason="needs ../shared/data/testclips")
def test_videos_of_any_kind_in_a_list_without_labels(tmp_path):
    """A disk full of odd files: what does not decode is replaced, the rest trains."""
    names = sorted(path.name for path in (SHARED / "testclips").iterdir())
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text(
            "".join(f"{SHARED / 'testclips' / file} -1\n" for file in names)
        )
    words = tiny(
        "data.name=list",
        "data.root=.",
        "train.batch_size=4",
        "train.max_bad=0.3",
        "train.max_steps=4",
    )
    page = REPO / "configs/ucf101_csl.yaml"
    done = tool(
        "train_net", "--cfg", page, *words, "eval.enabled=false", "optim.lr=0.01", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert (
        json.loads((tmp_path / "outputs/ucf101_csl/metrics.jsonl").read_text().splitlines()[-1])[
            "step"
        ]
        == 3
    )
    refused = tool("train_net", "--cfg", page, *words, "--output-dir", "b", cwd=tmp_path)
    assert refused.returncode == 1 and "needs labels" in refused.stderr


@needs_ucf101_mini
def test_the_users_own_command_on_real_videos(tmp_path):
    words = [
        "model.backbone=r2plus1d_10",
        "model.width=8",
        "model.hidden=32",
        "model.dim=16",
        "data.frames=4",
        "data.short_side=40",
        "data.size=32",
        "data.workers=2",
        "train.batch_size=8",
        "train.max_steps=3",
        "optim.name=adamw",
        "optim.lr=0.003",
        "eval.clips=1",
        "eval.limit=6",
        "eval.steps=2",
    ]
    root = SHARED / "ucf101_mini"
    done = tool(
        "train_net",
        "--cfg",
        REPO / "configs/ucf101_csl_adv.yaml",
        f"data.root={root}",
        *words,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "outputs/ucf101_csl_adv/eval/pgd/summary.json").read_text())
    assert summary["n"] == 6 and summary["representation"]["trained_probe"]["n"] == 50
    # three steps may learn nothing, which is warned of
    assert [
        line for line in summary["warnings"] if not line.startswith("the probe on trained")
    ] == []
