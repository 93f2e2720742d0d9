"""A folder of rows is of one model, list, protocol, suite and seed; rows of other calls stay."""

import json
from functools import partial

import pytest
import torch

from tests.evaluation.helpers import (
    CFG,
    CPU,
    SMALL,
    bias_rows,
    corruption_rows,
    random_model,
    robust_rows,
)
from tests.helpers import tiny_ucf101
from vidrobust.attacks import ThreatModel, parse_threat
from vidrobust.config import DataConfig
from vidrobust.data import eval_dataset, source_videos, ucf101
from vidrobust.evaluation import (
    Suite,
)
from vidrobust.evaluation.adversarial.rows import timings
from vidrobust.evaluation.results import rank_files
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return ucf101(tiny_ucf101(tmp_path_factory.mktemp("identity"), train=1, test=5), "test", 1)[0]


EVALUATIONS = {"results": robust_rows, "corruptions": corruption_rows, "bias": bias_rows}


def _as_module(net):
    return net


def _as_closure(net):
    return lambda x: net(x).float()


def _as_partial(net):
    return partial(_as_closure(net))


def _without_module(net):
    """The weights are numbers in a function: only its outputs differ from another's."""
    weight, bias = net[1].weight.tolist(), net[1].bias.tolist()
    return lambda x: x.flatten(1) @ torch.tensor(weight).T + torch.tensor(bias)


@pytest.mark.parametrize("stem", EVALUATIONS)
@pytest.mark.parametrize("wrap", [_as_module, _as_closure, _as_partial, _without_module])
def test_rows_of_another_model_are_refused_and_stay(records, tmp_path, stem, wrap):
    run = EVALUATIONS[stem]
    first = run(records, tmp_path, wrap(random_model(0)))
    before = (tmp_path / f"{stem}.jsonl").read_bytes()
    for indices in ((0, 1, 2, 3), (4, 5)):
        with pytest.raises(
            UserError, match=rf"{stem}.jsonl holds rows of another model; choose another folder, or"
        ):
            run(records, tmp_path, wrap(random_model(1)), indices)
    assert (tmp_path / f"{stem}.jsonl").read_bytes() == before
    assert run(records, tmp_path, wrap(random_model(0))) == first


@pytest.mark.parametrize("stem", EVALUATIONS)
def test_a_model_that_is_called_otherwise_is_the_same(records, tmp_path, stem):
    run = EVALUATIONS[stem]
    first = run(records, tmp_path, random_model(0))
    for wrap in (_as_closure, _as_partial):
        assert run(records, tmp_path, wrap(random_model(0))) == first


@pytest.mark.parametrize("stem", EVALUATIONS)
def test_the_same_weights_that_read_their_input_otherwise_are_another_model(
    records, tmp_path, stem
):
    run, net = EVALUATIONS[stem], random_model(0)
    run(records, tmp_path, net)
    with pytest.raises(UserError, match="another model"):
        run(records, tmp_path, lambda x: net(1 - x))


@pytest.mark.parametrize("stem", EVALUATIONS)
def test_a_name_recognises_the_model_without_calling_it(records, tmp_path, stem):
    def never(x):
        raise AssertionError

    run = EVALUATIONS[stem]
    first = run(records, tmp_path, random_model(0), identity="step 3")
    assert run(records, tmp_path, never, identity="step 3") == first
    with pytest.raises(UserError, match="another model"):
        run(records, tmp_path, never, identity="step 4")
    with pytest.raises(UserError, match="another model"):
        run(records, tmp_path, random_model(0))


def test_a_random_model_is_recognised_by_its_weights(records, tmp_path):
    def noisy(net):
        return lambda x: net(x) + 1e-3 * torch.randn(len(x), 2)

    first = corruption_rows(records, tmp_path, noisy(random_model(0)))
    assert corruption_rows(records, tmp_path, noisy(random_model(0))) == first
    with pytest.raises(UserError, match="another model"):
        corruption_rows(records, tmp_path, noisy(random_model(1)))


def test_the_probe_takes_no_random_numbers_of_the_model(records, tmp_path):
    """A model that draws gives the rows that it gave before there was a probe."""
    from vidrobust.evaluation.identity import identify_model

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    identify_model(lambda x: torch.randn(len(x), 2), eval_dataset(CFG, records, 1), CPU)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_another_suite_seed_list_or_protocol_is_refused_by_name(records, tmp_path):
    net = random_model(0)
    rows = robust_rows(records, tmp_path, net)
    wider = DataConfig(**(vars(CFG) | {"stride": 3}))
    for options, told in (
        ({"suite": Suite("apgd-ce", steps=5)}, r"suite \(pgd-2x1, here apgd-ce-5x1\)"),
        ({"seed": 1}, r"seed \(0, here 1\)"),
        ({"h264_crf": 30}, r"protocol \(h264 0, here 30\)"),
        ({"cfg": wider}, r"protocol \(stride 2, here 3\)"),
        ({"dataset": source_videos(CFG, records, 2)}, r"protocol \(clips 1, here 2"),
        ({"dataset": eval_dataset(CFG, records[::-1], 1)}, "list of videos"),
        ({"seed": 1, "suite": Suite("fgsm")}, "suite .* and seed"),
    ):
        with pytest.raises(UserError, match=f"results.jsonl holds rows of another {told}"):
            robust_rows(records, tmp_path, net, **options)
    assert robust_rows(records, tmp_path, net) == rows
    corruption_rows(records, tmp_path, net)
    for options, told in (
        ({"seed": 1}, "seed"),
        ({"place": "source"}, r"protocol \(place view, here source\)"),
    ):
        with pytest.raises(UserError, match=f"corruptions.jsonl holds rows of another {told}"):
            corruption_rows(records, tmp_path, net, **options)
    bias_rows(records, tmp_path, net)
    with pytest.raises(UserError, match="bias.jsonl holds rows of another seed"):
        bias_rows(records, tmp_path, net, seed=1)


@pytest.mark.parametrize("stem", EVALUATIONS)
def test_rows_of_other_videos_stay(records, tmp_path, stem):
    net, path = random_model(0), tmp_path / f"{stem}.jsonl"

    def run(*arguments):
        rows = EVALUATIONS[stem](*arguments)
        return [row.to_json() for row in rows] if stem == "results" else rows

    first = run(records, tmp_path, net, (0, 1, 2, 3))
    second = run(records, tmp_path, net, (6, 7))
    assert {row["index"] for row in first} == {0, 1, 2, 3}
    assert {row["index"] for row in second} == {6, 7}
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(row in kept for row in first + second)
    both = run(records, tmp_path, net, (0, 1, 2, 3, 6, 7))
    assert {row["index"] for row in both} == {0, 1, 2, 3, 6, 7}
    assert len(both) == len(first) + len(second) == len(path.read_text().splitlines())
    assert all(row in both for row in first + second)


def test_rows_of_other_threats_stay(records, tmp_path):
    net = random_model(0)
    first = robust_rows(records, tmp_path, net)
    second = robust_rows(records, tmp_path, net, threats=[parse_threat("l2-0.5")])
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert lines == [row.to_json() for row in first + second]
    threats = [*SMALL, ThreatModel("linf", 4 / 255), parse_threat("l2-0.5")]
    third = robust_rows(records, tmp_path, net, threats=threats)
    assert len(third) == 12
    assert all(row in third for row in first + second)


def test_rows_of_a_video_that_another_batch_measures_again_stay(records, tmp_path):
    """The batch (1, 2) holds one video that is there already."""
    net = random_model(0)
    first = robust_rows(records, tmp_path, net, (0, 1), threats=[parse_threat("linf-0")])
    again = robust_rows(records, tmp_path, net, (1, 2), threats=[parse_threat("linf-0")])
    assert again[0] == first[1]
    assert [row.index for row in again] == [1, 2]


def test_severities_that_are_added_keep_their_own_accuracy(records, tmp_path):
    net, names = random_model(0), ("contrast", "gaussian_noise")
    fresh = {
        s: corruption_rows(records, tmp_path / f"s{s}", net, names=names, severities=(s,))
        for s in (1, 3, 5)
    }
    first = corruption_rows(records, tmp_path / "all", net, names=names, severities=(1, 5))
    assert [row["severities"] for row in first[:3]] == [[0], [1, 5], [1, 5]]
    found = corruption_rows(records, tmp_path / "all", net, names=names, severities=(5, 3, 1))
    for row in found:
        if row["name"] == "clean":
            continue
        for severity, predicted in zip((5, 3, 1), row["predicted"], strict=True):
            (alone,) = (
                r for r in fresh[severity] if (r["index"], r["name"]) == (row["index"], row["name"])
            )
            assert alone["predicted"] == [predicted]
    assert corruption_rows(records, tmp_path / "all", net, names=names, severities=(1, 5)) == first
    stored = [
        json.loads(line) for line in (tmp_path / "all/corruptions.jsonl").read_text().splitlines()
    ]
    assert [row["severities"] for row in stored if row["name"] == "contrast"] == [[1, 5, 3]] * 4


def test_only_severities_that_are_missing_are_measured(records, tmp_path):
    net, sizes = random_model(0), []
    corruption_rows(records, tmp_path, net, severities=(1, 5))

    def counted(x):
        sizes.append(len(x))
        return net(x)

    corruption_rows(records, tmp_path, counted, severities=(1, 2, 5))
    assert sum(sizes) == 2 + 4, "the probe, twice, and one severity of each video"


def test_files_of_other_names_are_nobodys_rows(records, tmp_path):
    """A copy beside the rows, and what another tool calls a rank."""
    net = random_model(0)
    rows = robust_rows(records, tmp_path, net)
    stale = [row.to_json() | {"robust": None, "index": 9} for row in rows] + [
        row.to_json() | {"robust": None} for row in rows
    ]
    text = "".join(json.dumps(row) + "\n" for row in stale)
    names = [
        "results_old.jsonl",
        "results.backup.jsonl",
        "results.rank1.old.jsonl",
        "results.rankx.jsonl",
        "timing_old.jsonl",
    ]
    for name in names:
        (tmp_path / name).write_text(
            text if "results" in name else '{"linf-1/255": {"pgd": 1e9}}\n'
        )
    (tmp_path / "results.jsonl").unlink()
    assert robust_rows(records, tmp_path, net) == rows
    assert robust_rows(records, tmp_path, net, (8, 9))[1].robust is not None
    assert timings(tmp_path)["linf-1/255"]["pgd"] < 1e6
    assert [path.name for path in rank_files(tmp_path, "results")] == ["results.jsonl"]
    assert all((tmp_path / name).is_file() for name in names)


def test_ranks_are_read_in_their_order(tmp_path):
    for name in ("results.rank10.jsonl", "results.rank2.jsonl", "results.jsonl"):
        (tmp_path / name).write_text("")
    assert [p.name for p in rank_files(tmp_path, "results")] == [
        "results.jsonl",
        "results.rank2.jsonl",
        "results.rank10.jsonl",
    ]


def _as_before(folder, stem, checkpoint):
    """Leave a folder as earlier versions did: with the identity of the command line alone."""
    (folder / f"{stem}.identity.json").unlink()
    if checkpoint:
        (folder / "identity.json").write_text(
            json.dumps({"checkpoint": checkpoint, "config_sha": "0"})
        )
    if stem == "corruptions":
        path = folder / "corruptions.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            del row["severities"]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("stem", EVALUATIONS)
def test_a_folder_of_an_earlier_version_goes_on_if_the_command_line_claimed_it(
    records, tmp_path, stem
):
    run, net = EVALUATIONS[stem], random_model(0)
    rows = run(records, tmp_path, net, identity="step 3")
    _as_before(tmp_path, stem, "step 3")
    assert run(records, tmp_path, net, identity="step 3") == rows
    assert (tmp_path / f"{stem}.identity.json").is_file()


@pytest.mark.parametrize("stem", EVALUATIONS)
@pytest.mark.parametrize("checkpoint", ["", "step 4"])
def test_rows_that_nothing_says_the_model_of_are_refused(records, tmp_path, stem, checkpoint):
    run, net = EVALUATIONS[stem], random_model(0)
    run(records, tmp_path, net, identity="step 3")
    _as_before(tmp_path, stem, checkpoint)
    with pytest.raises(
        UserError,
        match=f"{stem}.jsonl holds rows, but {stem}.identity.json, which records what they were",
    ):
        run(records, tmp_path, net, identity="step 3")


def test_every_rank_refuses_what_the_first_refuses(records, tmp_path, monkeypatch):
    """Else the others would wait for it."""
    robust_rows(records, tmp_path, random_model(0))
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "patient_barrier", lambda: pytest.fail("it waits"))
    with pytest.raises(UserError, match="another model"):
        robust_rows(records, tmp_path, random_model(1))
