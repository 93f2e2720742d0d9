"""Read a study's config file and list its runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from vidrobust import config
from vidrobust.config.find import find_config
from vidrobust.config.yaml_text import read_page
from vidrobust.study.claims import Claim, is_list_of_text, read_claims
from vidrobust.study.tuning import TUNED_RUNS, Choices, Tuning, read_choices, read_tuning, words_of
from vidrobust.study.until import UNTIL, Until, read_until
from vidrobust.utils.errors import UserError, nearest
from vidrobust.utils.text import shown

_BASE = "_BASE_"


@dataclass(frozen=True)
class Study:
    """Describe a study: arms x data sets x seeds.

    Options are `key=value` overrides. Later ones replace earlier ones, in this order: those of all
    runs, of the data set, of the arm, of the command line. `{arm}` in an option is replaced by the
    folder of that arm's run with the same data set and seed, for example a teacher's.

    Attributes:
        arms: name of an arm -> its options.
        datasets: name of a data set -> its config file, relative to that of the study.
        seeds: seeds of the runs.
        common: options of all runs.
        baseline: name of the arm that others are compared with.
        comparators: names of arms whose gap to the baseline the others may close.
        skip: name of a data set -> arms that are not run on it.
        options: name of a data set -> options of its runs.
        claims: what papers claim about the arms.
        evaluations: name -> options of another evaluation of the trained runs. It is made for the
            arms of the claims that name it; if none does, for all.
        until: accuracy at which the training of all arms stops; None: it does not.
        tune: options that are chosen by held-out videos, before the runs; None: none.
        config_file: config file of the study.
    """

    arms: Mapping[str, Sequence[str]]
    datasets: Mapping[str, str]
    seeds: Sequence[int] = (0, 1, 2)
    common: Sequence[str] = ()
    baseline: str = ""
    comparators: Sequence[str] = ()
    skip: Mapping[str, Sequence[str]] = field(default_factory=dict)
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)
    claims: Sequence[Claim] = ()
    evaluations: Mapping[str, Sequence[str]] = field(default_factory=dict)
    tune: Tuning | None = None
    until: Until | None = None
    config_file: Path = Path("study.yaml")


@dataclass(frozen=True)
class Arm:
    """Describe one run of a study: an arm on a data set with a seed.

    Attributes:
        dataset: name of the data set.
        name: name of the arm.
        seed: seed of the run.
        cfg: configuration of the run.
        folder: folder of the run.
        needs: folders of the runs that this one starts from.
        until: when its training stops before its time; None: it does not.
        check: configuration of the evaluation by which `until` is checked.
        further: configurations of its other evaluations, each with another eval.name.
    """

    dataset: str
    name: str
    seed: int
    cfg: config.Config
    folder: Path
    needs: tuple[Path, ...] = ()
    until: Until | None = None
    check: config.Config | None = None
    further: tuple[config.Config, ...] = ()

    @property
    def label(self) -> str:
        """Return how messages name the run."""
        return f"{self.dataset}, {self.name}, seed {self.seed}"


# --- Reading ---


def read_study(path: str | Path) -> Study:
    """Read a study from its config file, or from the name of one in `configs/`.

    Raises:
        UserError: if there is no such file. Also for an unknown key, a value of another type, and
            the name of an unknown arm or data set.
    """
    path = find_config(path)
    if not path.exists():
        raise UserError(f"{path}: no such study; give the path of its config file")
    # References such as ${data.root} are resolved by the configuration of each run, not now.
    content = _with_base(path)
    keys = [item.name for item in fields(Study) if item.name != "config_file"]
    for key in content:
        if key not in keys:
            raise UserError(f"{path}: unknown key '{shown(key)}'{nearest(key, keys)}")
    _check_types(content, path)
    _check_folder_names(content, path)
    claims = read_claims(content.pop("claims", []), path)
    tune = read_tuning(content.pop("tune", None), path, content["arms"])
    until = read_until(content.pop("until", None), path)
    study = Study(**content, claims=claims, tune=tune, until=until, config_file=path)
    _check_references(study, path)
    return study


def _with_base(path: Path) -> dict[str, Any]:
    """Return the content of a config file, whose keys replace those of the file under `_BASE_`.

    Raises:
        UserError: for a base that is missing, or that has a base itself.
    """
    content = read_page(path, str(path), "a study")
    name = content.pop(_BASE, None)
    if name is None:
        return content
    base = path.parent / str(name)
    if not isinstance(name, str) or not base.is_file():
        raise UserError(f"{path}: {_BASE}={shown(name)}: no such file beside it")
    below = read_page(base, str(base), "a study")
    if _BASE in below:
        raise UserError(f"{path}: {_BASE}: {base} has a base itself; name that one")
    return below | content


def _check_types(content: Mapping[str, Any], path: Path) -> None:
    """Raise UserError for a value of another type than its key needs.

    Args:
        content: content of the config file.
        path: the config file.
    """
    for key in ("arms", "datasets"):
        if not isinstance(content.get(key), dict) or not content[key]:
            raise UserError(f"{path}: {key}: must be a mapping of names, at least one")
    for name, config_file in content["datasets"].items():
        if not isinstance(config_file, str):
            raise UserError(
                f"{path}: datasets: {shown(name)}={shown(config_file)}: must be a config file"
            )
    options = content.get("options", {})
    if not isinstance(options, dict):
        raise UserError(
            f"{path}: options={shown(options)}: must be a mapping of data sets to lists of"
            " key=value"
        )
    common = {"common": content.get("common", [])}
    further = content.get("evaluations", {})
    if not isinstance(further, dict):
        raise UserError(
            f"{path}: evaluations={shown(further)}: must be a mapping of names to lists of"
            " key=value"
        )
    # A list of mappings, not a merged one, as an arm may have the name of a data set.
    lists = [content["arms"], options, common, further]
    for name, overrides in (item for each in lists for item in each.items()):
        if not is_list_of_text(overrides):
            raise UserError(
                f"{path}: {shown(name)}: must be a list of key=value, not '{shown(overrides)}'"
            )
    _check_options_of_evaluations(further, content["arms"], path)
    skip = content.get("skip", {})
    if not isinstance(skip, dict) or not all(map(is_list_of_text, skip.values())):
        raise UserError(
            f"{path}: skip: must be a mapping of data sets to lists of arms, not '{shown(skip)}'"
        )
    if not is_list_of_text(content.get("comparators", [])):
        raise UserError(
            f"{path}: comparators={shown(content['comparators'])}: must be a list of arms"
        )
    if not isinstance(content.get("baseline", ""), str):
        raise UserError(
            f"{path}: baseline={shown(content['baseline'])}: must be the name of an arm"
        )
    _check_seeds(content.get("seeds", [0]), path)


def _check_options_of_evaluations(
    evaluations: Mapping[str, Sequence[str]], arms: Mapping[str, Any], path: Path
) -> None:
    """Raise UserError for options of an evaluation that would have no effect there.

    Args:
        evaluations: name -> options.
        arms: the arms of the study.
        path: the config file.
    """
    for name, options in evaluations.items():
        where = f"{path}: evaluations: {shown(name)}"
        for option in options:
            if option.startswith(_OF_RUN):
                key = option.partition("=")[0]
                raise UserError(f"{where}: {key} is an option of the run; leave it out")
            if any(f"{{{arm}}}" in option for arm in arms):
                raise UserError(f"{where}: {shown(option)}: must not name an arm's run")


# options that an evaluation has from its run, or that only matter in training
_OF_RUN = ("seed", "model.", "method.", "optim.", "train.", "augment.", "eval.name", "data.root")


def _check_seeds(seeds: Any, path: Path) -> None:
    """Raise UserError for anything but a list of different whole numbers."""
    # type() and not isinstance(): True is an int, and no seed.
    is_valid = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not is_valid or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(
            f"{path}: seeds={shown(seeds)}: must be different whole numbers, at least one"
        )


def _check_folder_names(content: Mapping[str, Any], path: Path) -> None:
    """Raise UserError for a name that cannot be that of a folder, or that is taken."""
    if TUNED_RUNS in content["datasets"]:
        raise UserError(
            f"{path}: datasets: '{TUNED_RUNS}' is the folder of runs that choose options; choose"
            " another name"
        )
    for key in ("arms", "datasets", "evaluations"):
        for name in content.get(key, {}):
            if name in ("", ".", "..") or "/" in name or not name.isprintable():
                raise UserError(
                    f"{path}: {key}: '{shown(name)}' cannot be the name of a folder; choose another"
                )
            if key == "evaluations" and name.startswith(UNTIL):
                raise UserError(f"{path}: {key}: '{shown(name)}' is a check of `until`; rename it")


def _check_references(study: Study, path: Path) -> None:
    """Raise UserError for names of arms and data sets that the study does not have."""
    for key, by_dataset in (("skip", study.skip), ("options", study.options)):
        for name in by_dataset:
            if name not in study.datasets:
                near = nearest(name, list(study.datasets))
                raise UserError(f"{path}: {key}: no data set '{shown(name)}'{near}")
    arms = [study.baseline, *study.comparators]
    for skipped in study.skip.values():
        arms += skipped
    for claim in study.claims:
        arms += [claim.arm, claim.against]  # an empty name is none
        if claim.evaluation and claim.evaluation not in study.evaluations:
            near = nearest(claim.evaluation, list(study.evaluations))
            raise UserError(f"{path}: claims: no evaluation '{shown(claim.evaluation)}'{near}")
        for name in (*claim.datasets, *claim.dial):
            if name not in study.datasets:
                near = nearest(name, list(study.datasets))
                raise UserError(f"{path}: claims: no data set '{shown(name)}'{near}")
    for name in arms:
        if name and name not in study.arms:
            raise UserError(f"{path}: no arm '{shown(name)}'{nearest(name, list(study.arms))}")


# --- Runs ---


def plan(
    study: Study, out: Path, overrides: Sequence[str] = (), roots: Mapping[str, str] | None = None
) -> list[Arm]:
    """List all runs of a study.

    They are ordered by seed, so that a study that is stopped early has complete comparisons. What
    `tune` has chosen is part of their options.

    Args:
        study: the study.
        out: folder of the study.
        overrides: options of the command line.
        roots: name of a data set -> its folder.

    Raises:
        UserError: for options that the configuration refuses, and for unknown data sets in `roots`.
    """
    for name in roots or {}:
        if name not in study.datasets:
            raise UserError(f"--data {name}: no such data set{nearest(name, list(study.datasets))}")
    # Seeds are the outer loop, so that all arms of a seed come before the next seed.
    choices: Choices = (read_choices(out) if study.tune else None) or {}
    grid = study.tune.grid if study.tune else {}
    # under another eval.name the command measures the runs once more, by that evaluation alone
    is_renamed = any(word.partition("=")[0] == "eval.name" for word in overrides)
    runs = []
    for seed in study.seeds:
        for dataset in study.datasets:
            for name in study.arms:
                if name not in study.skip.get(dataset, ()):
                    root = (roots or {}).get(dataset)
                    # the file may have an arm that is no longer chosen for
                    picked = choices.get(dataset, {}).get(name, {}) if name in grid else {}
                    words = [*study.arms[name], *words_of(picked)]
                    load = partial(
                        load_run, study, out, dataset, root=root, seed=seed, overrides=overrides
                    )
                    folder = _folder(out, dataset, name, seed)
                    run = _run(study, dataset, name, words, load, folder)
                    runs.append(replace(run, further=()) if is_renamed else run)
    return runs


def _run(
    study: Study,
    dataset: str,
    name: str,
    words: list[str],
    load: Callable[[Sequence[str]], tuple[config.Config, tuple[Path, ...]]],
    folder: Path,
) -> Arm:
    """Return one run of a study.

    Args:
        study: the study.
        dataset: name of the data set.
        name: name of the arm.
        words: options of the arm.
        load: options -> what `load_run` returns for this data set and seed.
        folder: folder of the run.
    """
    cfg, needs = load(words)
    check = None
    if study.until is not None:
        check, _ = load([*words, *study.until.options])
        _require_held_out(study, check)
    further = tuple(
        _evaluation(study, each, load([*words, *study.evaluations[each]])[0], cfg)
        for each in _evaluations_of(study, dataset, name)
    )
    return Arm(dataset, name, cfg.seed, cfg, folder, needs, study.until, check, further)


def _evaluations_of(study: Study, dataset: str, arm: str) -> list[str]:
    """Return the names of the further evaluations of an arm on a data set."""
    names = []
    for name in study.evaluations:
        claims = [claim for claim in study.claims if claim.evaluation == name]
        places = [
            {
                (place, each)
                for place in _places(study, claim)
                for each in (claim.arm, claim.against)
            }
            for claim in claims
        ]
        if not claims or (dataset, arm) in set().union(*places):
            names.append(name)
    return names


def _places(study: Study, claim: Claim) -> Sequence[str]:
    """Return the data sets that a claim is about."""
    return list(claim.dial) or claim.datasets or list(study.datasets)


def _evaluation(study: Study, name: str, cfg: config.Config, main: config.Config) -> config.Config:
    """Return the configuration of a further evaluation under its name.

    Args:
        study: the study.
        name: name of the evaluation.
        cfg: its configuration, under the eval.name of the run's own evaluation.
        main: configuration of that.

    Raises:
        UserError: if both have the same name.
    """
    if name == main.eval.name:
        raise UserError(
            f"{study.config_file}: evaluations: {shown(name)}: is the eval.name of the runs; choose"
            " another name"
        )
    return replace(cfg, eval=replace(cfg.eval, name=name))


def _require_held_out(study: Study, cfg: config.Config) -> None:
    """Raise UserError where runs hold out no videos on which an accuracy could be reached."""
    if not cfg.data.validation:
        raise UserError(
            f"{study.config_file}: until: runs must hold out videos, as data.validation=0.1 does"
        )


def load_run(
    study: Study,
    out: Path,
    dataset: str,
    words: Sequence[str],
    root: str | None,
    seed: int,
    overrides: Sequence[str],
) -> tuple[config.Config, tuple[Path, ...]]:
    """Return the configuration of one run of a study, and the folders of runs that it needs.

    Args:
        study: the study.
        out: folder of the study.
        dataset: name of the data set.
        words: options of the arm, `key=value`.
        root: folder of the data set; None: that of its config file.
        seed: seed of the run.
        overrides: options of the command line.
    """
    # A slash at the end of the folder would end up inside ${data.root}_texture.
    root_option = [] if root is None else [f"data.root={root.rstrip('/') or '/'}"]
    options = _override(
        study.common,
        study.options.get(dataset, ()),
        words,
        root_option,
        [f"seed={seed}"],
        overrides,
    )
    # `{arm}` stands for the folder of a run that must exist before this one.
    needs = []
    for other in study.arms:
        if any(f"{{{other}}}" in option for option in options):
            folder = _folder(out, dataset, other, seed)
            needs.append(folder)
            options = [option.replace(f"{{{other}}}", str(folder)) for option in options]
    cfg = config.load(study.config_file.parent / study.datasets[dataset], options)
    return cfg, tuple(needs)


def chosen(study: Study, datasets: str, arms: str, seeds: str) -> Study:
    """Return the part of a study that the command line asks for.

    Args:
        study: the whole study.
        datasets: comma-separated names of data sets; "" for all.
        arms: comma-separated names of arms; "" for all.
        seeds: comma-separated seeds; "" for all. They need not be seeds of the study.

    Raises:
        UserError: for names that the study does not have, and for seeds that are not numbers.
    """
    parts: dict[str, Any] = {}
    for key, text, items in (("datasets", datasets, study.datasets), ("arms", arms, study.arms)):
        names = [name for name in text.split(",") if name]
        for name in names:
            if name not in items:
                raise UserError(f"--{key} {name}: unknown; the study has {', '.join(items)}")
        parts[key] = {name: items[name] for name in items if not names or name in names}
    numbers = [number for number in seeds.split(",") if number]
    # The length keeps seeds within 64 bits.
    if not all(n.isascii() and n.isdigit() and len(n) < 19 for n in numbers):
        raise UserError(f"--seeds {seeds}: must be whole numbers, such as 0,1,2")
    parts["seeds"] = [int(number) for number in numbers] or study.seeds
    kept_arms = parts["arms"]
    return replace(
        study,
        **parts,
        baseline=study.baseline if study.baseline in kept_arms else "",
        comparators=[name for name in study.comparators if name in kept_arms],
    )


def _folder(out: Path, dataset: str, arm: str, seed: int) -> Path:
    """Return the folder of a run.

    Args:
        out: folder of the study.
        dataset: name of the data set.
        arm: name of the arm.
        seed: seed of the run.
    """
    return out / dataset / arm / f"seed{seed}"


def _override(*layers: Sequence[str]) -> list[str]:
    """Merge lists of options, of which later ones replace earlier ones."""
    by_key: dict[str, str] = {}
    for layer in layers:
        for option in layer:
            by_key[option.split("=", 1)[0]] = option
    return list(by_key.values())
