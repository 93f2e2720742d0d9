"""Damaged files of a run: each is named in one line, or its content is computed again."""

import json
import shutil

import pytest

from tests.helpers import tiny, tiny_ucf101, tool
from vidrobust import config

DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "no text": lambda content: bytes(range(256)) * 8,
    "null": lambda content: b"null\n",
    "a list": lambda content: b"[{}]\n",
    "no keys": lambda content: b"{}\n",
    "deep": lambda content: b"[" * 100_000,
    "other keys": lambda content: content.replace(b'": ', b'X": '),
}
RESUME = (
    "train_net",
    "--cfg",
    "page.yaml",
    "--output-dir",
    "run",
    "--resume",
    *tiny("train.epochs=3", "eval.enabled=false"),
)
OVERWRITE = (
    "train_net",
    "--cfg",
    "page.yaml",
    "--output-dir",
    "run",
    "--overwrite",
    *tiny("train.max_steps=1", "eval.enabled=false"),
)
STUDY = ("study", "--cfg", "study.yaml", "--output-dir", "study")
EVAL, ARM = "run/eval/pgd", "study/clips/simclr/seed0"

# (file, command that reads it, whether the evaluation was stopped before it wrote its summary)
CASES = [
    (f"{EVAL}/identity.json", ("test_net", "--checkpoint", "run"), False),
    (f"{EVAL}/identity.json", ("test_net", "--checkpoint", "run", "--report-only"), False),
    (
        f"{EVAL}/identity.json",
        ("test_net", "--checkpoint", "run", "--overwrite", "eval.steps=1"),
        False,
    ),
    (f"{EVAL}/summary.json", ("test_net", "--checkpoint", "run"), False),
    (f"{EVAL}/summary.json", ("test_net", "--checkpoint", "run", "--report-only"), False),
    (f"{EVAL}/timing.jsonl", ("test_net", "--checkpoint", "run", "--report-only"), False),
    *(
        (f"{EVAL}/{name}", ("test_net", "--checkpoint", "run"), True)
        for name in (
            "results.jsonl",
            "corruptions.jsonl",
            "bias.jsonl",
            "checks.json",
            "features.pt",
        )
    ),
    *(
        (f"run/{name}", RESUME, False)
        for name in ("metrics.jsonl", "config.yaml", "env.json", "checkpoints/last.pt")
    ),
    *((f"run/{name}", OVERWRITE, False) for name in ("metrics.jsonl", "config.yaml", "env.json")),
    ("run/features/test.npz", ("extract_features", "--checkpoint", "run"), False),
    *(
        (f"{ARM}/{name}", STUDY, False)
        for name in ("metrics.jsonl", "config.yaml", "eval/pgd/summary.json", "checkpoints/last.pt")
    ),
    ("data/manifest.jsonl", ("prepare", "scan", "--cfg", "page.yaml"), False),
    ("data/manifest.jsonl", (*OVERWRITE, "data.manifest=data/manifest.jsonl"), False),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Make a data set with manifest, a run with evaluation and features, and a study."""
    top = tmp_path_factory.mktemp("whole")
    tiny_ucf101(top / "data", train=3, test=2)
    (top / "page.yaml").write_text("data: {root: data}")
    words = tiny(
        "eval.corruption.names=[contrast]",
        "eval.corruption.severities=[3]",
        "eval.bias=[patch]",
        "eval.clips=1",
        "eval.checks=2",
    )
    (top / "base.yaml").write_text(
        config.to_yaml(config.loads("", tiny("data.root=data", "train.epochs=1")))
    )
    (top / "study.yaml").write_text(
        "seeds: [0]\ndatasets: {clips: base.yaml}\narms:\n  simclr: []\n"
    )
    for command in (
        ("train_net", "--cfg", "page.yaml", "--output-dir", "run", *words),
        ("extract_features", "--checkpoint", "run"),
        ("prepare", "scan", "--cfg", "page.yaml"),
        STUDY,
    ):
        done = tool(*command, cwd=top)
        assert done.returncode == 0, done.stderr
    return top


@pytest.fixture
def place(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "top")
    return tmp_path / "top"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("name", "command", "stopped"), CASES)
def test_a_damaged_file_is_named_or_written_again(place, name, command, stopped, damage):
    path = place / name
    # features.pt is deleted when the summary is written
    content = path.read_bytes() if path.exists() else b"PK" * 400
    path.unlink(missing_ok=True)  # last.pt is a hard link: do not damage the step_*.pt
    path.write_bytes(DAMAGES[damage](content))
    if stopped:
        (place / EVAL / "summary.json").unlink()
    done = tool(*command, cwd=place)
    errors = [
        line for line in done.stderr.splitlines() if " E " in line[:22] or line.startswith("error")
    ]
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    assert not errors or path.name in errors[0] or path.parent.name in errors[0], done.stderr
    assert bool(errors) == (done.returncode == 1) and len(errors) <= (
        2 if command[0] == "study" else 1
    ), done.stderr


@pytest.mark.parametrize(
    "name", ["results.jsonl", "corruptions.jsonl", "bias.jsonl", "checks.json"]
)
def test_damaged_rows_are_measured_again(place, name):
    path = place / EVAL / name
    first = (place / EVAL / "summary.json").read_bytes()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:1], b"\xff\x00{]\n", *lines[2:]]))
    (place / EVAL / "summary.json").unlink()
    done = tool("test_net", "--checkpoint", "run", cwd=place)
    assert done.returncode == 0, done.stderr
    assert (place / EVAL / "summary.json").read_bytes() == first


def test_a_copy_with_a_damaged_prepared_json_is_refused_by_name(place):
    made = tool("prepare", "resize", "--cfg", "page.yaml", "--output", "small", cwd=place)
    assert made.returncode == 0, made.stderr
    for text in ("", "[]", json.dumps({"sources": 3})):
        (place / "small/prepared.json").write_text(text)
        done = tool("prepare", "resize", "--cfg", "page.yaml", "--output", "small", cwd=place)
        assert (
            done.returncode == 1
            and "prepared.json" in done.stderr
            and "Traceback" not in done.stderr
        )
