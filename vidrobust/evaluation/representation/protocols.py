"""PROTOCOLS: the registry of protocols, by the name that protocol.name gives them."""

from dataclasses import replace
from pathlib import Path

from vidrobust import config
from vidrobust.data import build_records
from vidrobust.evaluation.representation import linear_sgd
from vidrobust.evaluation.representation.protocol_spec import ProtocolSpec
from vidrobust.utils.errors import UserError


def _no_few_labels(cfg: config.Config, trained: config.Config | None) -> str:
    return "" if cfg.data.labels else "set data.labels, such as 10% or 5 (videos per class)"


def _same_data(cfg: config.Config, trained: config.Config | None) -> str:
    if trained is None or _folder(trained) != _folder(cfg):
        return ""
    if trained.data.name == cfg.data.name:
        return (
            f"the model was trained on {cfg.data.name} itself; name another data set by data.name"
            " and data.root"
        )
    # a folder may be read in several formats, and may hold several data sets of torchvision
    try:
        own, other = (
            {record.path for record in build_records(replace(each.data, labels=""), "train")[0]}
            for each in (trained, cfg)
        )
    except UserError:  # the evaluation says what is missing
        return ""
    if not own & other:
        return ""
    return (
        f"{len(own & other)} of {len(other)} training videos of data.name={cfg.data.name} are those"
        f" that the model was trained on, as {trained.data.name}; name another data set"
    )


def _folder(cfg: config.Config) -> Path:
    return Path(cfg.data.root).resolve()


PROTOCOLS: dict[str, ProtocolSpec] = {
    "auto": ProtocolSpec(
        help="the model's own classifier, otherwise a linear probe; kNN beside it",
        source="this package",
    ),
    "knn": ProtocolSpec(
        help="k nearest neighbors on frozen features",
        source="Wu et al. 2018; Caron et al. 2021",
    ),
    "linear": ProtocolSpec(
        help="linear probe on frozen features, by L-BFGS",
        source="Alain and Bengio 2016",
    ),
    "few_labels": ProtocolSpec(
        help="linear probe and kNN with few labels per class",
        source="Chen et al. 2020 (SimCLR); Jiang et al. 2020 (ACL)",
        refusal=_no_few_labels,
    ),
    "transfer": ProtocolSpec(
        help="linear probe and kNN on another data set's training videos, attacked there",
        source="Fan et al. 2021 (AdvCL); Thoker et al. 2022 (SEVERE)",
        refusal=_same_data,
    ),
    "linear_sgd": linear_sgd.SGD,
    "linear_sgd_best_on_test": linear_sgd.BEST_ON_TEST,
    "finetune": ProtocolSpec(
        help="finetuning of all weights, for convolutional networks",
        source="Thoker et al. 2022",
        trains=True,
    ),
    "finetune_vit": ProtocolSpec(
        help="finetuning of a transformer: layer decay, mixup, CutMix, drop path",
        source="Tong et al. 2022",
        trains=True,
    ),
    "slf": ProtocolSpec(
        help="standard linear finetuning: a linear classifier on clean clips, frozen backbone",
        source="Luo et al. 2023",
        trains=True,
    ),
    "alf": ProtocolSpec(
        help="adversarial linear finetuning: a linear classifier on adversarial clips, frozen"
        " backbone",
        source="Luo et al. 2023",
        trains=True,
    ),
    "aff": ProtocolSpec(
        help="adversarial full finetuning of all weights by TRADES",
        source="Luo et al. 2023",
        trains=True,
    ),
    "aff_pgd": ProtocolSpec(
        help="adversarial full finetuning of all weights by PGD training",
        source="Madry et al. 2018",
        trains=True,
    ),
    "lora": ProtocolSpec(
        help="adversarial full finetuning by AutoLoRa: a branch for clean clips, a rate that robust"
        " accuracy decides",
        source="Xu et al. 2024",
        trains=True,
    ),
    "attentive": ProtocolSpec(
        help="attentive probe: a learned query attends to the tokens of a frozen backbone",
        source="Bardes et al. 2024",
        trains=True,
    ),
    "attentive_vjepa2": ProtocolSpec(
        help="attentive probe with three blocks of self-attention",
        source="Assran et al. 2025",
        trains=True,
    ),
    "retrieval": ProtocolSpec(
        help="recall at k: test videos search the training videos, clean and under attack",
        source="Han et al. 2020; Chen et al. 2021 (RSPNet)",
        options=frozenset({"similarity", "attacked", "neighbors"}),
    ),
}
