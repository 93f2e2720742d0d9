"""Layouts of self-supervised image models: MoCo, SimSiam, SupCon, solo-learn, ACL and others."""

from typing import Any

from vidrobust.models.checkpoints.layout import Layout, Weights

# residual blocks that are written anew in many code bases, after github.com/kuangliu/pytorch-cifar
_SHORTCUT = (r"\.shortcut\.", ".downsample.")
# a convolution and its norm that ACL and its successors keep in a module of their own
_DOWNSAMPLE = (
    (r"\.downsample\.conv\.", ".downsample.0."),
    (r"\.downsample\.bn\.", ".downsample.1."),
)


def _stem(weights: Weights, key: str, padding: int = 1) -> dict[str, Any]:
    """Return the options of the first convolution: 3x3 filters are those of CIFAR's stem."""
    if weights[key].shape[-1] != 3:
        return {}
    return {"stem": "cifar"} | ({"stem_padding": padding} if padding != 1 else {})


def _inside(weights: Weights, prefix: str = "") -> dict[str, Any]:
    """Return the statistics with which a model normalises inputs itself, from its buffers."""
    return {
        key: [round(float(value), 6) for value in weights[f"{prefix}normalize.{key}"].flatten()]
        for key in ("mean", "std")
    }


def _none() -> dict[str, Any]:
    """Return the statistics of a model that takes pixels in [0, 1] as they are."""
    return {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}


_TWO_BRANCHES = ((r"\.bn_list\.0\.", ".branches.clean."), (r"\.bn_list\.1\.", ".branches.adv."))

LAYOUTS = (
    Layout(
        name="ACL (also DynACL, AIR, A-InfoNCE)",
        origin="VITA-Group/Adversarial-Contrastive-Learning, models/resnet_multi_bn.py",
        needs=(r"normalize\.mean", r"bn1\.bn_list\.1\."),
        renames=(*_DOWNSAMPLE, *_TWO_BRANCHES),
        drops=(r"fc\.", r"normalize\."),
        branch="adv",
        options=lambda weights: _stem(weights, "conv1.weight") | _inside(weights),
    ),
    Layout(
        name="AdvCL",
        origin="LijieFan/AdvCL, models/resnet_cifar_multibn_ensembleFC.py",
        # the norms: clean, of PGD on the contrastive loss, of PGD on the pseudo-label loss too
        needs=(r"bn1\.bn_list\.1\.", r"head_proj\."),
        forbids=(r"normalize\.",),
        renames=(
            *_DOWNSAMPLE,
            *_TWO_BRANCHES,
            (r"\.bn_list\.2\.", ".branches.adv_ce."),
        ),
        drops=(r"fc_", r"head_"),
        branch="adv",
        options=lambda weights: _stem(weights, "conv1.weight") | _none(),
    ),
    Layout(
        name="DeACL",
        origin="pantheon5100/DeACL, solo/methods/base_for_adversarial_training.py",
        needs=(r"backbone\.normalize\.mean", r"backbone\.conv1\."),
        prefix=r"backbone\.",
        drops=(r"normalize\.",),
        options=lambda weights: (
            _stem(weights, "backbone.conv1.weight", padding=2) | _inside(weights, "backbone.")
        ),
    ),
    Layout(
        name="solo-learn",
        origin="vturrisi/solo-learn, solo/methods/base.py",
        needs=(r"backbone\.conv1\.", r"(classifier|projector|momentum_backbone)\."),
        forbids=(r"backbone\.normalize\.",),
        prefix=r"backbone\.",
        drops=(r"fc\.",),
        head=r"classifier\.",
        # its stem for small images has two pixels of padding
        options=lambda weights: _stem(weights, "backbone.conv1.weight", padding=2),
    ),
    Layout(
        name="MoCo (also VideoMoCo)",
        origin="facebookresearch/moco, moco/builder.py; tinapan-pt/VideoMoCo",
        needs=(r"encoder_q\.(conv1|stem)\.", r"(encoder_k\.|queue)"),
        prefix=r"encoder_q\.",
        drops=(r"fc\.",),
        options=lambda weights: _first_stem(weights, "encoder_q."),
    ),
    Layout(
        name="BYOL",
        origin="lucidrains/byol-pytorch and forks",
        needs=(r"online_encoder\.(net\.)?(conv1|stem)\.",),
        prefix=r"online_encoder\.(net\.)?",
        drops=(r"fc\.", r"projector\."),
        options=lambda weights: (
            _first_stem(weights, "online_encoder.") | _first_stem(weights, "online_encoder.net.")
        ),
    ),
    Layout(
        name="SupCon",
        origin="HobbitLong/SupContrast, networks/resnet_big.py",
        needs=(r"encoder\.conv1\.", r"head\."),
        prefix=r"encoder\.",
        renames=(_SHORTCUT,),
        drops=(r"fc\.",),
        options=lambda weights: _stem(weights, "encoder.conv1.weight"),
    ),
    Layout(
        name="SimSiam",
        origin="facebookresearch/simsiam, simsiam/builder.py",
        needs=(r"encoder\.conv1\.", r"predictor\."),
        prefix=r"encoder\.",
        drops=(r"fc\.",),
        options=lambda weights: _stem(weights, "encoder.conv1.weight"),
    ),
    Layout(
        name="RoCL (kuangliu's ResNet)",
        origin="Kim-Minseon/RoCL, src/models/resnet.py",
        needs=(r"conv1\.weight", r"layer2\.0\.shortcut\.0\."),
        renames=(_SHORTCUT,),
        head=r"linear\.",
        options=lambda weights: _stem(weights, "conv1.weight") | _none(),
        note="inputs are not normalised, as in RoCL; set model.mean and model.std for"
        " other code with this network",
    ),
)


def _first_stem(weights: Weights, prefix: str) -> dict[str, Any]:
    """Return the options of the first convolution where the backbone is an image network."""
    key = f"{prefix}conv1.weight"
    return _stem(weights, key) if key in weights and weights[key].ndim == 4 else {}
