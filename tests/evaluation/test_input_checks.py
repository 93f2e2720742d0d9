"""Arguments of evaluations and outputs of models are checked before anything is counted."""

import logging

import pytest
import torch
from torch import nn

from tests.evaluation.helpers import CFG, bias_rows, corruption_rows, random_model, robust_rows
from tests.helpers import tiny_ucf101
from vidrobust.data import eval_dataset, ucf101
from vidrobust.evaluation.natural.bias import partners_of
from vidrobust.evaluation.natural.corruption_summary import corruption_table
from vidrobust.evaluation.representation.knn import knn_scores
from vidrobust.evaluation.representation.probes import fit_probe
from vidrobust.evaluation.results import decoding_failures
from vidrobust.utils.errors import UserError

ALL = [robust_rows, corruption_rows, bias_rows]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return ucf101(tiny_ucf101(tmp_path_factory.mktemp("arguments"), train=1, test=5), "test", 1)[0]


@pytest.mark.parametrize("evaluate", ALL)
@pytest.mark.parametrize("size", [0, -1, 2.5, True, "2"])
def test_batch_sizes_that_are_none(records, tmp_path, evaluate, size):
    with pytest.raises(UserError, match=f"batch_size={size}: must be"):
        evaluate(records, tmp_path / "out", random_model(0), batch_size=size)


@pytest.mark.parametrize("evaluate", ALL)
@pytest.mark.parametrize(
    ("indices", "told"),
    [((0, 99), "99 is no video of the list"), ((-1, 0), "-1 is no"), ((1, 2, 1), "1 stands twice")],
)
def test_videos_that_are_not_there(records, tmp_path, evaluate, indices, told):
    with pytest.raises(UserError, match=told):
        evaluate(records, tmp_path / "out", random_model(0), indices)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"names": ("foo",)}, "foo"),
        ({"names": ("clean",)}, "clean"),
        ({"names": ("fog", "fog")}, "list each name once"),
        ({"severities": (6,)}, r"severities=\[6\]: must be whole numbers from 1 to 5"),
        ({"severities": (1.5,)}, "severities="),
        ({"severities": ()}, "severities="),
        ({"severities": (1, 1)}, "severities="),
    ],
)
def test_corruptions_that_are_none(records, tmp_path, options, told):
    with pytest.raises(UserError, match=told):
        corruption_rows(records, tmp_path / "out", random_model(0), **options)


def test_a_table_of_no_corruptions_says_so(records, tmp_path):
    rows = corruption_rows(records, tmp_path / "out", random_model(0), names=())
    with pytest.raises(ValueError, match="no rows of corruptions"):
        corruption_table(rows, [1], ["a", "b"])


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("foo",), "foo"),
        (("texture",), "the videos' textures are missing"),
        (("freeze",) * 2, "list each name once"),
    ],
)
def test_cues_that_are_none(records, tmp_path, names, told):
    """An unknown name measured the clips as they are."""
    with pytest.raises(UserError, match=told):
        bias_rows(records, tmp_path / "out", random_model(0), names=names)


def test_two_cues_need_two_classes(records, tmp_path):
    alike = [record for record in records if record.label == 0]
    with pytest.raises(UserError, match="two classes are needed"):
        bias_rows(alike, tmp_path / "out", random_model(0), names=("swapped",))


def test_a_partner_is_of_the_seed_and_the_video_alone(records):
    dataset = eval_dataset(CFG, records, 1)
    whole = partners_of(dataset, range(len(records)), 3)
    assert partners_of(dataset, [0, 1, 5], 3) == {index: whole[index] for index in (0, 1, 5)}
    assert all(records[i].label != records[other].label for i, other in whole.items())


def test_another_cue_that_is_asked_for_later_is_that_of_the_call(records, tmp_path):
    net = random_model(0)
    first = bias_rows(records, tmp_path / "out", net)
    assert {row["other"] for row in first} == {None}
    again = bias_rows(records, tmp_path / "out", net, others={0: 1, 2: 0})
    assert {
        r["index"]: r["other"] for r in again if r["name"] == "clean" and r["other"] is not None
    } == {0: 1, 2: 0}


@pytest.mark.parametrize("evaluate", [corruption_rows, bias_rows])
def test_a_row_without_a_finite_logit_is_no_prediction(records, tmp_path, evaluate):
    net = random_model(0)
    rows = evaluate(records, tmp_path / "out", lambda x: net(x) - torch.inf)
    assert all(row["predicted"] in (None, [None], [None, None]) and row["error"] for row in rows)
    rows = robust_rows(records, tmp_path / "r", lambda x: net(x) - torch.inf)
    assert all("infinite logits" in row.error and not row.robust for row in rows)


@pytest.mark.parametrize("evaluate", ALL)
def test_probabilities_are_no_logits(records, tmp_path, evaluate):
    net = random_model(0)
    with pytest.raises(UserError, match="returns probabilities"):
        evaluate(records, tmp_path / "out", lambda x: net(x).softmax(1))


@pytest.mark.parametrize("hold", [lambda net: [net], lambda net: {"a": (net,)}])
def test_a_model_in_a_container_is_recognised(records, tmp_path, hold):
    """Its weights moved by little, as those of the next checkpoint are."""
    one = random_model(0)
    box = hold(one)
    other = random_model(0)
    with torch.no_grad():
        other[1].weight.mul_(1.0005)

    def inside(kept):
        return kept[0] if isinstance(kept, list) else kept["a"][0]

    robust_rows(records, tmp_path / "out", lambda x: inside(box)(x))
    box = hold(other)
    with pytest.raises(UserError, match="rows of another model"):
        robust_rows(records, tmp_path / "out", lambda x: inside(box)(x))


def test_a_model_that_shows_no_module_is_told_by_its_outputs(records, tmp_path):
    class Hidden:
        __slots__ = ("net",)

        def __init__(self, net):
            self.net = net

        def __call__(self, x):
            return self.net(x)

    one, other = random_model(0), random_model(0)
    with torch.no_grad():
        other[1].weight.mul_(1.002)
    robust_rows(records, tmp_path / "out", Hidden(one))
    assert robust_rows(records, tmp_path / "out", Hidden(one))
    with pytest.raises(UserError, match="rows of another model"):
        robust_rows(records, tmp_path / "out", Hidden(other))


def test_a_norm_in_training_mode_is_told(records, tmp_path, caplog):
    net = nn.Sequential(nn.BatchNorm3d(3), nn.Flatten(1), nn.Linear(3 * 2 * 256, 2))
    with caplog.at_level(logging.WARNING):
        robust_rows(records, tmp_path / "out", net.requires_grad_(False))
    assert "BatchNorm3d in training mode" in caplog.text and "call eval()" in caplog.text


def test_a_model_without_a_gradient_is_told_so(records, tmp_path):
    net = random_model(0)
    with pytest.raises(UserError, match="the loss has no gradient at x"):
        robust_rows(records, tmp_path / "out", lambda x: net(x.detach()))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_identity_names_the_file(records, tmp_path, text):
    robust_rows(records, tmp_path / "out", random_model(0))
    (tmp_path / "out/results.identity.json").write_text(text)
    with pytest.raises(UserError, match="results.identity.json"):
        robust_rows(records, tmp_path / "out", random_model(0))


@pytest.mark.parametrize("crf", [-3, 52, 99])
def test_rate_factors_that_are_none(records, tmp_path, crf):
    with pytest.raises(UserError, match=f"h264_crf={crf}"):
        robust_rows(records, tmp_path / "out", random_model(0), h264_crf=crf)


def test_neighbours_and_probes_that_are_none():
    x, y = torch.rand(6, 4), torch.tensor([0, 1] * 3)
    for options in ({"k": 0}, {"temperature": 0}, {"temperature": -1}, {"temperature": torch.nan}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}="):
            knn_scores(x[:, None], x, y, 2, **options)
    for options in ({"l2": -1}, {"l2": torch.nan}, {"iterations": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}="):
            fit_probe(x, y, 2, **options)


def test_a_video_and_its_texture_that_do_not_decode_are_one_failure():
    rows = [
        {"index": 0, "uid": "a", "error": "a: empty"},
        {"index": 0, "uid": "a", "error": "tex/a: empty"},
        {"index": 1, "uid": "b", "error": None},
        {"index": 2, "uid": "c", "error": "c: cut"},
    ]
    assert decoding_failures(rows) == ["a: empty", "c: cut"]
