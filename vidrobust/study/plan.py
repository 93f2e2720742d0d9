"""Read a study's config file and list its runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from vidrobust import config
from vidrobust.config.find import find_config
from vidrobust.config.yaml_text import read_page
from vidrobust.utils.errors import UserError, nearest
from vidrobust.utils.text import shown


@dataclass(frozen=True)
class Study:
    """arms: name -> options that make it. datasets: name -> a page beside the study's. common:
    options of all runs, options: data set -> those of its runs alone.

    baseline: the arm whose gap to the comparators others close. skip: data set -> arms that are not
    for it. Options are `key=value` words; a data set's lie over `common`, an arm's over these, and
    the command line's over all. `{arm}` in one is the folder of the run of that arm with the same
    data set and seed, as a teacher's.
    """

    arms: Mapping[str, Sequence[str]]
    datasets: Mapping[str, str]
    seeds: Sequence[int] = (0, 1, 2)
    common: Sequence[str] = ()
    baseline: str = ""
    comparators: Sequence[str] = ()
    skip: Mapping[str, Sequence[str]] = field(default_factory=dict)
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)
    page: Path = Path("study.yaml")


@dataclass(frozen=True)
class Arm:
    """One run: an arm on a data set with a seed, in a folder of its own. needs: folders of runs
    that it begins from.
    """

    dataset: str
    name: str
    seed: int
    cfg: config.Config
    folder: Path
    needs: tuple[Path, ...] = ()


def read_study(path: str | Path) -> Study:
    """Raises UserError for a page that is none, and for arms and data sets that it names and that
    are not.
    """
    path = find_config(path)
    if not path.exists():
        raise UserError(f"no study {path}")
    # references in it are resolved by the run's configuration, not here
    page = read_page(path, str(path), "a study")
    known = [item.name for item in fields(Study) if item.name != "page"]
    for key in page:
        if key not in known:
            raise UserError(f"{path}: unknown key '{shown(key)}'{nearest(key, known)}")
    _check_forms(page, path)
    for key in ("arms", "datasets"):
        for name in page[key]:
            if name in ("", ".", "..") or "/" in name or not name.isprintable():
                raise UserError(
                    f"{path}: {key}: '{shown(name)}' is no name of a folder; choose another"
                )
    study = Study(**({"page": path} | page))
    for key, named in (("skip", study.skip), ("options", study.options)):
        for name in named:
            if name not in study.datasets:
                near = nearest(name, list(study.datasets))
                raise UserError(f"{path}: {key}: no data set '{shown(name)}'{near}")
    for name in [
        study.baseline,
        *study.comparators,
        *(name for arms in study.skip.values() for name in arms),
    ]:
        if name and name not in study.arms:
            raise UserError(f"{path}: no arm '{shown(name)}'{nearest(name, list(study.arms))}")
    return study


def _check_forms(page: Mapping[str, Any], path: Path) -> None:
    """Refuse values of a study's page that are not of the type that its key takes."""
    for key in ("arms", "datasets"):
        if not isinstance(page.get(key), dict) or not page[key]:
            raise UserError(f"{path}: {key} is a mapping of names, with one at least")
    for name, config_page in page["datasets"].items():
        if not isinstance(config_page, str):
            raise UserError(
                f"{path}: datasets: {shown(name)}={shown(config_page)}: write its config file"
            )
    options = page.get("options", {})
    if not isinstance(options, dict):
        raise UserError(
            f"{path}: options={shown(options)}: a mapping of data sets to lists of key=value"
        )
    common = {"common": page.get("common", [])}
    # an arm may have the name of a data set
    for name, words in [*page["arms"].items(), *options.items(), *common.items()]:
        if not _is_texts(words):
            raise UserError(f"{path}: {shown(name)}: a list of key=value, not '{shown(words)}'")
    skip = page.get("skip", {})
    if not isinstance(skip, dict) or not all(map(_is_texts, skip.values())):
        raise UserError(
            f"{path}: skip is a mapping of data sets to lists of arms, not '{shown(skip)}'"
        )
    if not _is_texts(page.get("comparators", [])):
        raise UserError(f"{path}: comparators={shown(page['comparators'])}: a list of arms")
    if not isinstance(page.get("baseline", ""), str):
        raise UserError(f"{path}: baseline={shown(page['baseline'])}: the name of an arm")
    seeds = page.get("seeds", [0])
    sound = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not sound or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: seeds={shown(seeds)}: different whole numbers, one at least")


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def plan(
    study: Study, out: Path, overrides: Sequence[str] = (), roots: Mapping[str, str] | None = None
) -> list[Arm]:
    """All runs, seed by seed, so that a study that is stopped has whole comparisons.

    roots: data set -> its folder. Raises UserError for options that the configuration refuses.
    """
    for name in roots or {}:
        if name not in study.datasets:
            raise UserError(f"--data {name}: no such data set{nearest(name, list(study.datasets))}")
    runs = []
    for seed in study.seeds:
        for dataset, page in study.datasets.items():
            # a slash at its end would stand inside ${data.root}_texture
            root = (
                [f"data.root={roots[dataset].rstrip('/') or '/'}"]
                if roots and dataset in roots
                else []
            )
            for name, options in study.arms.items():
                if name in study.skip.get(dataset, ()):
                    continue
                words = _over(
                    study.common,
                    study.options.get(dataset, ()),
                    options,
                    root,
                    [f"seed={seed}"],
                    overrides,
                )
                needs = []
                for other in study.arms:
                    if any(f"{{{other}}}" in word for word in words):
                        needs.append(_folder(out, dataset, other, seed))
                        words = [word.replace(f"{{{other}}}", str(needs[-1])) for word in words]
                cfg = config.load(study.page.parent / page, words)
                runs.append(
                    Arm(dataset, name, seed, cfg, _folder(out, dataset, name, seed), tuple(needs))
                )
    return runs


def chosen(study: Study, datasets: str, arms: str, seeds: str) -> Study:
    """The part of a study that comma-separated lists name; an empty list: all of it. Raises
    UserError for others.
    """
    parts: dict[str, Any] = {}
    for key, words, known in (("datasets", datasets, study.datasets), ("arms", arms, study.arms)):
        names = [word for word in words.split(",") if word]
        for name in names:
            if name not in known:
                raise UserError(f"--{key} {name}: the study has {', '.join(known)}")
        parts[key] = {name: known[name] for name in known if not names or name in names}
    numbers = [word for word in seeds.split(",") if word]
    if not all(word.isascii() and word.isdigit() and len(word) < 19 for word in numbers):
        raise UserError(f"--seeds {seeds}: whole numbers, as 0,1,2")
    parts["seeds"] = [int(word) for word in numbers] or study.seeds
    kept = parts["arms"]
    return replace(
        study,
        **parts,
        baseline=study.baseline if study.baseline in kept else "",
        comparators=[name for name in study.comparators if name in kept],
    )


def _folder(out: Path, dataset: str, arm: str, seed: int) -> Path:
    return out / dataset / arm / f"seed{seed}"


def _over(*layers: Sequence[str]) -> list[str]:
    """Options, of which later layers replace earlier ones."""
    found: dict[str, str] = {}
    for layer in layers:
        for word in layer:
            found |= {word.split("=", 1)[0]: word}
    return list(found.values())
