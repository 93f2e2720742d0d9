"""Config files of protocols that train: they build, use all their options, and take steps."""

import pytest

from tests.helpers import REPO, tiny, tiny_videomae
from tests.training.helpers import train_state
from vidrobust import config
from vidrobust.evaluation.representation.protocols import PROTOCOLS
from vidrobust.methods import build_method, without_effect

TRAINED = sorted(name for name, spec in PROTOCOLS.items() if spec.trains)


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """A tiny VideoMAE of transformers."""
    folder = tmp_path_factory.mktemp("hf") / "videomae"
    return tiny_videomae(folder, num_hidden_layers=2, image_size=16, patch_size=8)


def configured(name, ucf, transformer, *words):
    """Return the configuration of a protocol above that of a contrastive run."""
    options = [f"protocol.name={name}", *words]
    page = REPO / "configs" / "protocols" / f"{name}.yaml"
    trained = config.to_yaml(config.loads("", tiny(f"data.root={ucf}", "method.name=moco")))
    if name == "finetune_vit":
        options += [f"model.backbone=hf:{transformer}", "model.width=0"]
    return config.loads(trained, options, config_file=page)


@pytest.mark.parametrize("name", TRAINED)
def test_every_option_of_its_file_has_an_effect(name, ucf, transformer):
    cfg = configured(name, ucf, transformer)
    method = build_method(cfg, 2)
    assert cfg.method.name == "supervised"
    assert method.model.frozen is (name in ("slf", "alf", "attentive", "attentive_vjepa2"))
    page = REPO / "configs" / "protocols" / f"{name}.yaml"
    idle = set(without_effect(cfg)) & config.keys_given([], page)
    assert not idle


@pytest.mark.parametrize("name", TRAINED)
def test_it_takes_steps(name, ucf, transformer, tmp_path):
    words = ["train.batch_size=4", "train.max_steps=2", "method.adversary.steps=1"]
    if name.startswith("attentive"):
        words += ["model.head_heads=2"]
    state = train_state(configured(name, ucf, transformer, *words), tmp_path / "out")
    assert state["step"] == 2
