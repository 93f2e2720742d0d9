"""PROTOCOLS: the registry of protocols, by the name that protocol.name gives them."""

from vidrobust.evaluation.representation import linear_sgd
from vidrobust.evaluation.representation.protocol_spec import ProtocolSpec

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
    "linear_sgd": linear_sgd.SGD,
    "linear_sgd_best_on_test": linear_sgd.BEST_ON_TEST,
    "retrieval": ProtocolSpec(
        help="recall at k: test videos search the training videos, clean and under attack",
        source="Han et al. 2020; Chen et al. 2021 (RSPNet)",
        options=frozenset({"similarity", "attacked", "neighbors"}),
    ),
}
