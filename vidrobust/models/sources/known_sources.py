"""SOURCES: packages whose models are named as `SOURCE:NAME` or `SOURCE:NAME@WEIGHTS`."""

import importlib.util

from vidrobust.models.sources.huggingface import HUGGINGFACE
from vidrobust.models.sources.own_code import PYTHON, TORCHSCRIPT
from vidrobust.models.sources.pytorchvideo import PYTORCHVIDEO
from vidrobust.models.sources.source_model import Adjust, Source, SourceModel
from vidrobust.models.sources.timm import TIMM
from vidrobust.models.sources.torchvision import TORCHVISION
from vidrobust.utils.errors import UserError, lookup

SOURCES: dict[str, Source] = {
    "torchvision": TORCHVISION,
    "pytorchvideo": PYTORCHVIDEO,
    "hf": HUGGINGFACE,
    "timm": TIMM,
    "python": PYTHON,
    "torchscript": TORCHSCRIPT,
}


def is_spec(name: str) -> bool:
    """Return whether a name is that of a model of another package."""
    return ":" in name


def require_spec(spec: str) -> tuple[Source, str, str]:
    """Return source, name and weights of a spec; "" for no weights.

    Raises:
        UserError: for an unknown source or name, with the nearest one, and for a package that is
            not installed.
    """
    kind, _, rest = spec.partition(":")
    if not rest:
        raise UserError(
            f"{spec}: write SOURCE:NAME, such as torchvision:r3d_18, or vidrobust:resnet18 for a"
            " backbone of this package"
        )
    source = lookup(SOURCES, kind, f"{spec}: source")
    name, _, weights = rest.partition("@")
    if source.package and importlib.util.find_spec(source.package) is None:
        raise UserError(f"{spec}: needs a package: pip install 'vidrobust[{source.extra}]'")
    known = source.names()
    if known:
        lookup(dict.fromkeys(known), name, f"{spec}: model")
    return source, name, weights


def build_source(spec: str, adjust: Adjust = lambda card: card) -> SourceModel:
    """Return the model that a spec such as `torchvision:r3d_18@KINETICS400_V1` names.

    Args:
        spec: the spec.
        adjust: changes the input card that the source gives.

    Raises:
        UserError: as `require_spec`, and for a model that cannot be built.
    """
    source, name, weights = require_spec(spec)
    return source.build(name, weights, adjust)


def fresh(spec: str, adjust: Adjust = lambda card: card) -> SourceModel | None:
    """Return `build_source` with random weights; None for the user's own code."""
    kind, _, rest = spec.partition(":")
    if kind in ("python", "torchscript"):
        return None
    name = rest.partition("@")[0]
    bare = f"{kind}:{name}@random" if kind == "hf" else f"{kind}:{name}"
    return build_source(bare, adjust)
