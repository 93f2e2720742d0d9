from pathlib import Path

import pytest

from tests.helpers import REPO
from vidrobust import config
from vidrobust.evaluation.representation.protocols import PROTOCOLS
from vidrobust.methods import build_method
from vidrobust.methods.false_negatives.rules import RULES
from vidrobust.models.input_spec import InputSpec
from vidrobust.utils.errors import UserError

PROTOCOL_PAGES = sorted(REPO.glob("configs/protocols/*.yaml"))
PAGES = sorted(page for page in REPO.glob("configs/*.yaml") if not page.stem.startswith("study_"))


def _page(tmp_path: Path, text: str, name: str = "page.yaml") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_config_file_loads_builds_and_names_its_command(page):
    cfg = config.load(page)
    build_method(cfg, 10)
    tool = (
        "test_net.py --checkpoint outputs/ucf101_csl"
        if page.stem.startswith("eval_")
        else "train_net.py"
    )
    assert f"python tools/{tool} --cfg configs/{page.name}" in page.read_text().split("\n_BASE_")[0]
    assert config.loads(config.to_yaml(cfg)) == cfg


@pytest.mark.parametrize("page", PROTOCOL_PAGES, ids=lambda p: p.stem)
def test_every_protocol_has_a_file_that_its_name_loads(page):
    text = page.read_text()
    assert f"python tools/test_net.py --cfg configs/protocols/{page.name} --checkpoint" in text
    trained = config.to_yaml(config.load(REPO / "configs" / "demo.yaml"))
    by_file = config.loads(trained, config_file=page)
    assert by_file.protocol.name == page.stem and by_file.eval.name == page.stem
    assert config.loads(trained, [f"protocol.name={page.stem}"]) == by_file
    # the command line comes last
    assert config.loads(trained, [f"protocol.name={page.stem}", "eval.name=x"]).eval.name == "x"


def test_every_protocol_but_the_default_has_a_file():
    assert {page.stem for page in PROTOCOL_PAGES} == PROTOCOLS.keys() - {"auto"}


def test_old_checkpoints_with_eps_instead_of_threats_are_read():
    old = config.to_yaml(config.loads("method: {adversary: {name: clae}}")).replace(
        "threats: []", "eps: 0.05", 1
    )
    assert "eps: 0.05" in old and config.loads(old).method.adversary.threats == ["linf-0.05"]


def test_zero_steps_in_old_checkpoints_mean_the_default_of_the_method():
    old = config.to_yaml(config.loads("method: {adversary: {name: clae}}")).replace(
        "    steps: -1", "    steps: 0", 1
    )
    assert "    steps: 0" in old and config.loads(old).method.adversary.steps == -1
    # on the command line 0 stays 0, which building the method refuses
    assert config.loads("", ["method.adversary.steps=0"]).method.adversary.steps == 0


def test_later_bases_and_overrides_have_priority(tmp_path):
    _page(tmp_path, "data: {frames: 4, stride: 3}\noptim: {lr: 1}", "a.yaml")
    _page(tmp_path, "_BASE_: a.yaml\ndata: {frames: 5}", "b.yaml")
    page = _page(tmp_path, "_BASE_: [a.yaml, b.yaml]\nseed: 3")
    cfg = config.load(page, ["data.stride=1"])
    assert (cfg.data.frames, cfg.data.stride, cfg.optim.lr, cfg.seed) == (5, 1, 1.0, 3)
    assert config.load(page, ["data.stride", "7", "seed=1"]).data.stride == 7


def test_numbers_may_be_fractions_and_have_exponents(tmp_path):
    page = _page(
        tmp_path,
        "method: {adversary: {alpha: 8/255}}\noptim: {lr: 1e-6, weight_decay: 5E-4}\n"
        "eval: {threats: [linf-0, linf-1/255]}",
    )
    cfg = config.load(page)
    assert (
        cfg.method.adversary.alpha == 8 / 255
        and cfg.optim.lr == 1e-6
        and cfg.optim.weight_decay == 5e-4
    )
    assert cfg.eval.threats == ["linf-0", "linf-1/255"]
    assert config.load(page, ["augment.scale=[0.5/2,1]"]).augment.scale == [0.25, 1.0]


@pytest.mark.parametrize(
    ("text", "value"), [("true", "true"), ("false", "false"), ("'false'", "false"), ("on", "true")]
)
def test_a_choice_among_true_false_and_more_is_read_as_a_boolean_was(text, value):
    cfg = config.loads(f"train: {{channels_last: {text}}}")
    assert cfg.train.channels_last == value
    assert config.loads("", [f"train.channels_last={text}"]) == cfg
    assert config.loads(config.to_yaml(cfg)) == cfg


def test_environment_variables_in_paths_are_replaced(tmp_path, monkeypatch):
    page = _page(tmp_path, "data: {root: '${oc.env:VIDEOS}/ucf'}")
    monkeypatch.setenv("VIDEOS", "/somewhere")
    assert config.load(page).data.root == "/somewhere/ucf"
    monkeypatch.delenv("VIDEOS")
    with pytest.raises(UserError, match="VIDEOS"):
        config.load(page)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {framse: 4}", "unknown option 'data.framse'; did you mean 'data.frames'"),
        ("optm: {lr: 1}", "unknown option 'optm.lr'; did you mean 'optim.lr'"),
        ("data: 3", "'data' is a section"),
        ("seed: 1\nseed: 2", "duplicate key seed.*line 2"),
        ("data: {frames: many}", "data.frames.*'many'"),
        ("optim: {lr: eight/255}", "optim.lr"),
        ("data: {frames: 0}", "data.frames=0: must be at least 1"),
        ("data: {stride: 0}", "data.stride=0: must be at least 1"),
        (
            "method: {adversary: {alpha: -1/255}}",
            "method.adversary.alpha=-0.0039.*must be at least 0",
        ),
        (
            "eval: {threats: [linf-0, linf-0]}",
            r"eval.threats=\[linf-0,linf-0\]: must list each budget once",
        ),
        ("eval: {threats: [linf-1, roof-l2-1]}", "eval.threats: no threat model l2 x roof"),
        ("eval: {threats: [l2+3]}", "'l2[+]3' is no threat model"),
        ("eval: {threats: [linf-4]}", "write 4/255"),
        ("eval: {threats: [frames17-linf-1]}", "17 frames of a clip of 16"),
        ("eval: {threats: [patch113-linf-1]}", "does not fit into frames of 112 x 112"),
        ("optim: {lr: 0}", "optim.lr=0.0: must be greater than 0"),
        ("data: {policy: wrap}", "data.policy=wrap: choose one of repeat_last, loop, error"),
        ("data: {size: 200}", "data.size=200: must be at most data.short_side=128"),
        ("augment: {scale: [0.9, 0.1]}", "must be two areas, from and to"),
        (
            "method: {adversary: {name: clae, threats: [frames17-linf-1]}}",
            "threats: .*17 frames of a clip of 16",
        ),
        ("method: {adversary: {name: clae, threats: [linf-0]}}", "threats: linf-0 changes nothing"),
        (
            "method: {adversary: {name: clae, step: 8}}",
            "method.adversary.step=8.0: must be at most 2",
        ),
        ("- a\n- b", "a mapping of keys to values"),
        ("a: [1,", "page.yaml: .*line"),
        ("_BASE_: nowhere.yaml", "no configuration file .*nowhere.yaml .a _BASE_ of"),
        ("_BASE_: page.yaml", "leads back to the config file itself"),
    ],
)
def test_mistakes_in_a_config_file_are_reported_in_one_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        config.load(_page(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.frame=3"], "command line: unknown option 'data.frame'; did you mean 'data.frames'"),
        (["seed"], "override 'seed' has no value"),
        (["seed=1", "seed=2"], "'seed' is given twice"),
        (["seed=x"], "^command line: seed.*'x'"),
        (["eval.threats=linf-4/255"], "^command line: eval.threats=linf-4/255: needs a list"),
        (["data=[1,"], "command line"),
    ],
)
def test_mistakes_on_the_command_line_are_reported_by_name(tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        config.load(_page(tmp_path, "seed: 0"), words)


def test_help_lists_every_option_with_its_default_and_meaning():
    text = config.help_text()
    for key, item in config.options():
        assert f"  {key}=" in text and item.metadata["help"] in text
    assert "data.frames=16 " in text and "eval.batch_size=32 " in text


def test_the_hash_changes_with_every_option_that_is_not_ignored():
    a, b = config.Config(), config.Config()
    b.data.workers = 7
    assert config.config_sha(a) != config.config_sha(b)
    assert config.config_sha(a, ["data.workers"]) == config.config_sha(b, ["data.workers"])


def test_every_option_is_read_by_some_code():
    """The name of each option appears as an attribute outside options.py."""
    code = "".join(
        p.read_text() for p in (REPO / "vidrobust").rglob("*.py") if p.name != "options.py"
    )
    code += "".join(p.read_text() for p in (REPO / "tools").glob("*.py"))
    for key, _ in config.options():
        section, _, name = key.rpartition(".")
        generated = section == "data.motionshapes" and f'spec["{name}"]' in code
        rule_argument = section == "method.false_negatives" and any(
            name in rule.arguments for rule in RULES.values()
        )
        # the options of an input card replace its fields by name
        card_field = section == "model.input" and (
            name in InputSpec.__dataclass_fields__ or f'"{name}"' in code
        )
        assert generated or rule_argument or card_field or f".{name}" in code, key


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eval: {threats: ['${oc.env:NOPE}']}", "NOPE"),
        ("_BASE_: ${oc.env:NOPE}", "NOPE"),
        ("seed: ???", "seed has no value"),
        ("optim: {lr: .inf}", "must be a finite number"),
        ("seed: 99999999999999999999", "must be at most"),
    ],
)
def test_unset_infinite_and_huge_values_are_refused(tmp_path, text, message):
    (tmp_path / "page.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        config.load(tmp_path / "page.yaml")


def test_brackets_in_keys_are_refused():
    with pytest.raises(UserError, match="write section.name=VALUE"):
        config.loads("", ["eval.threats[0]=1"])
