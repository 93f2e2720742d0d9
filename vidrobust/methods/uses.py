"""Which options each method and adversary uses."""

from vidrobust import config
from vidrobust.methods.adversarial.presets import RECIPES, branches_of, shows_original

# method -> the options of `method` that it takes; the names of adversary and rule, and norm, are all methods'
USES = {
    "simclr": {"temperature", "clips_per_video", "chunk", "joint_views", "loss_scale"},
    "moco": {"temperature", "clips_per_video", "queue", "momentum", "momentum_climbs"},
    "byol": {"clips_per_video", "predictor", "momentum", "momentum_climbs"},
    "simsiam": {"clips_per_video", "predictor"},
    "supcon": {"temperature", "clips_per_video", "chunk", "joint_views", "loss_scale"},
    "plain": {"temperature"}, "uel": {"temperature"}, "supervised": {"clusters", "head_first"},
    "distill": {"teacher", "student"},
}  # fmt: skip
# rule -> option of `method.false_negatives` -> the argument that it is
RULE_OPTIONS: dict[str, dict[str, str]] = {
    "fixed": {"threshold": "threshold"}, "topk": {"k": "k"}, "topk_threshold": {"k": "k", "threshold": "threshold"},
    "quantile": {"rate": "rate", "over": "over"},
    "adaptive_threshold": {"start": "start", "threshold": "end", "warmup": "warmup"},
    "adaptive_rate": {"rate": "rate", "warmup": "warmup"}, "mean_std": {"sigmas": "k"},
    "cluster": {}, "oracle": {}, "sibling": {},
}  # fmt: skip
# kind of negative -> the options of `method.negatives` that it takes besides count and alpha
_PATCHES = ("patch_px", "turn")
NEGATIVE_OPTIONS = {"patch": _PATCHES, "patch_frames": _PATCHES, "tube": (*_PATCHES, "tube"), "tube_shuffle": ("grid",)}


def _with_pairs(method: config.Method) -> set[str]:
    """A-InfoNCE's options that have an effect: on pairs of a clean and an adversarial view, and on their negatives."""
    a = method.adversary
    if method.name not in ("simclr", "supcon"):
        return set()
    mixed = a.name in ("clae", "rocl", "advcl") or (a.name == "acl" and a.pairing == "a2s")
    pairs = {"asymmetry", "pair_weight"} if a.asymmetry != 0.5 else {"asymmetry"}
    return (pairs if mixed else set()) | {"hardness"} | ({"debias"} if a.hardness else set())


def without_effect(cfg: config.Config) -> list[str]:
    """Return the keys of training options that differ from their defaults and have no effect.

    Args:
        cfg: of which the method, the augmentation and the optimizer are looked at.
    """
    default = config.Config()
    idle = _idle_of_method(cfg.method) + _idle_beside_method(cfg)
    return [key for key in idle if config.get(cfg, key) != config.get(default, key)]


def _idle_beside_method(cfg: config.Config) -> list[str]:
    """Return the keys of options that others switch off, whatever their values."""
    optim = cfg.optim
    switches = {  # key -> whether what it needs is on
        "augment.scale": not cfg.augment.shift,
        "augment.original_shift": shows_original(cfg.method.adversary),
        "augment.corruption_prob": bool(cfg.augment.corruptions),
        "augment.corruption_severities": bool(cfg.augment.corruptions),
        "optim.milestones": optim.schedule == "step",
        "optim.gamma": optim.schedule == "step",
        "optim.lars_exclude": optim.name == "lars",
        "optim.momentum": optim.name in ("sgd", "lars"),
    }
    return [key for key, needed in switches.items() if not needed]


def _idle_of_method(method: config.Method) -> list[str]:
    """Return the keys of options of `method` that it does not look at as it is configured."""
    rule = method.false_negatives.rule
    used = {"name", "norm", "adversary.name", "false_negatives.rule", "negatives.names"} | USES[method.name]
    for name in method.negatives.names:
        used |= {f"negatives.{option}" for option in ("alpha", *NEGATIVE_OPTIONS.get(name, ()))}
        used |= set() if name == "texture" else {"negatives.count"}
    used |= {"clusters_from", "clusters_metric"} if method.clusters else set()
    if method.adversary.name != "none":
        recipe = RECIPES[method.adversary.name]
        alone = {"combine"} if len(method.adversary.threats) < 2 and method.adversary.combine != "branches" else set()
        used |= {f"adversary.{name}" for name in (recipe.attack | recipe.options) - alone}
        used |= {"teacher"} if method.adversary.name == "advcl" else set()
        keyed = method.adversary.name == "dynacl" and method.adversary.key_encoder
        used |= {"momentum", "momentum_climbs"} if keyed else set()
        used |= {"adversary.momentum"} if branches_of(method.adversary) else set()
        used |= {f"adversary.{name}" for name in _with_pairs(method)}
        used |= {"adversary.warmup"} if method.adversary.schedule == "linear" else set()
        used |= {"adversary.first"} if method.adversary.schedule == "curriculum" else set()
    if rule != "none":
        used |= {f"false_negatives.{name}" for name in ("action", "siblings", "encoder", *RULE_OPTIONS[rule])}
        used |= {"false_negatives.clusters"} if rule == "cluster" else set()
        used |= {"momentum", "momentum_climbs"} if method.false_negatives.encoder == "momentum" else set()
    return [f"method.{key}" for key, _ in config.options(config.Method) if key not in used]
