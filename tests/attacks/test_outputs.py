"""Check what is refused of a model's output and behaviour, and how bad samples are numbered."""

import types

import pytest
import torch

from tests.attacks.helpers import labelled, seeded, small_net
from vidrobust.attacks import (
    BadSamples,
    Misclassify,
    ThreatModel,
    attack_step,
    autoattack,
    eot,
    fab,
    fgsm,
    pgd,
    pull_toward,
    push_away,
    self_checks,
    square,
    suite_steps,
    universal,
    worst_case,
)
from vidrobust.attacks.losses import checked_logits

THREAT = ThreatModel("linf", 4 / 255)


@pytest.fixture(scope="module")
def problem():
    net = small_net()
    return (net, *labelled(net, (6, 3, 4, 12, 12)))


def _nan_at(net, x, sample):
    """Return a model with NaN logits for one clip, which it recognises by its first pixels."""
    key = x[sample, :, 0, 0, 0]

    def predict(v):
        hit = (v[:, :, 0, 0, 0] - key).abs().amax(1) < 5 / 255
        return torch.where(hit.unsqueeze(1), torch.nan, net(v))

    return predict


def _nan_on_the_way(net, x, sample):
    """Return a model with NaN logits for one clip once the clip has changed."""
    key = x[sample, :, 0, 0, 0]

    def predict(v):
        away = (v[:, :, 0, 0, 0] - key).abs().amax(1)
        return torch.where(((away > 1e-6) & (away < 5 / 255)).unsqueeze(1), torch.nan, net(v))

    return predict


@pytest.mark.parametrize("batch_size", [0, 1, 2, 4])
@pytest.mark.parametrize("checks", [0, 4])
def test_autoattack_numbers_a_bad_sample_in_the_whole_batch(problem, batch_size, checks):
    net, x, y = problem
    with pytest.raises(BadSamples) as raised:
        autoattack(
            _nan_at(net, x, 3), x, y, THREAT, effort=0.02, batch_size=batch_size, checks=checks
        )
    assert raised.value.samples == [3]


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab", "fab-t", "square", "pgd", "fmn"])
def test_worst_case_numbers_a_bad_sample_in_the_whole_batch_when_others_are_left_out(problem, name):
    net, x, y = problem
    # two samples are wrong from the start, so that attacks get a smaller batch
    y = torch.cat([(y[:2] + 1) % 6, y[2:]])
    options = {"queries": 20} if name == "square" else {"steps": 10}
    with pytest.raises(ValueError, match=r"samples \[4\]"):
        worst_case(
            _nan_on_the_way(net, x, 4),
            x,
            y,
            THREAT,
            [attack_step(name, **options)],
            generator=seeded(),
        )


def test_a_later_start_of_pgd_numbers_a_bad_sample_in_the_whole_batch(problem):
    """The first start breaks some samples, which the second leaves out."""
    net, x, y = problem
    starts = []

    def predict(v):
        starts.append(len(v))
        hit = (v[:, :, 0, 0, 0] - x[5, :, 0, 0, 0]).abs().amax(1) < 9 / 255
        logits = net(v)
        held = torch.nn.functional.one_hot(y[5:6], 6).float() * 1e3
        logits = torch.where(hit.unsqueeze(1), held + 0 * logits, logits)  # never broken
        # the first start has four passes
        return torch.where(hit.unsqueeze(1) & (len(starts) > 4), torch.nan, logits)

    with pytest.raises(BadSamples) as raised:
        pgd(
            Misclassify(predict, y),
            x,
            ThreatModel("linf", 8 / 255),
            steps=3,
            restarts=3,
            generator=seeded(),
        )
    assert raised.value.samples == [5]
    assert starts[0] == 6 > starts[-1], "some samples had left the batch"


def test_a_clip_with_nan_is_refused_by_its_number(problem):
    net, x, y = problem
    x = x.clone()
    x[2, 0, 0, 0, 0] = torch.nan
    with pytest.raises(BadSamples, match=r"x holds NaN in samples \[2\]"):
        worst_case(net, x, y, THREAT, [attack_step("pgd")])


def test_a_logit_of_infinity_is_refused_and_of_minus_infinity_accepted():
    logits, y = torch.zeros(3, 4), torch.zeros(3, dtype=torch.long)
    logits[1, 2] = torch.inf
    with pytest.raises(BadSamples, match=r"infinite logits for samples \[1\]"):
        checked_logits(logits, y)
    logits[1, 2] = -torch.inf
    assert checked_logits(logits, y)[1, 2] == -torch.inf


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (
            lambda logits: (logits, logits),
            r"a tuple \(Tensor, Tensor\); give lambda x: model\(x\)\[0\]",
        ),
        (
            lambda logits: [None, logits],
            r"a list \(NoneType, Tensor\); give lambda x: model\(x\)\[1\]",
        ),
        (
            lambda logits: {"loss": 0, "logits": logits},
            r"a dict of loss, logits; give lambda x: model\(x\)\['logits'\]",
        ),
        (
            lambda logits: types.SimpleNamespace(logits=logits),
            r"a SimpleNamespace; give lambda x: model\(x\).logits",
        ),
        (lambda logits: logits.detach().numpy(), "a numpy ndarray; give the torch tensor itself"),
        (lambda logits: None, r"returns NoneType; give a tensor \(B, K\)"),
        (lambda logits: logits.long(), "a tensor of torch.int64; give floating-point numbers"),
    ],
)
@pytest.mark.parametrize("call", ["autoattack", "pgd", "self_checks", "eot"])
def test_outputs_that_are_no_tensor_are_refused_with_what_to_write(problem, wrap, message, call):
    net, x, y = problem
    predict = lambda v: wrap(net(v))  # noqa: E731
    calls = {
        "autoattack": lambda: autoattack(predict, x, y, THREAT, effort=0.02),
        "pgd": lambda: pgd(Misclassify(predict, y), x, THREAT),
        "self_checks": lambda: self_checks(predict, x, y, THREAT),
        "eot": lambda: eot(predict, 2)(x),
    }
    with pytest.raises(ValueError, match=message):
        calls[call]()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [2, 10, 101])
def test_a_half_precision_softmax_cast_to_float32_is_refused(dtype, classes):
    torch.manual_seed(0)
    probabilities = (3 * torch.randn(20, classes)).to(dtype).softmax(1).float()
    with pytest.raises(ValueError, match="leave out its softmax"):
        checked_logits(probabilities, torch.zeros(20, dtype=torch.long))


def test_positive_half_precision_logits_are_not_mistaken_for_probabilities():
    torch.manual_seed(0)
    logits = (3 * torch.rand(20, 101)).bfloat16().float()
    assert torch.equal(checked_logits(logits, torch.zeros(20, dtype=torch.long)), logits)


def _writes(net, how):
    def predict(v):
        if how == "sub_":
            v.sub_(0.5)
        elif how == "index":
            v[:, 0] = 0
        else:
            v.data.mul_(0.5)
        return net(v)

    return predict


@pytest.mark.parametrize("how", ["sub_", "index", "data"])
@pytest.mark.parametrize(
    "call", ["worst_case", "autoattack", "pgd", "square", "fab", "self_checks", "within"]
)
def test_a_model_that_writes_into_its_input_is_refused(problem, how, call):
    net, x, y = problem
    x, predict = x.clone(), _writes(net, how)
    loss = Misclassify(predict, y, "margin")
    # all ways in which a model is called
    calls = {
        "worst_case": lambda: worst_case(predict, x, y, THREAT, [attack_step("pgd", steps=2)]),
        "autoattack": lambda: autoattack(predict, x, y, THREAT, effort=0.02, checks=0),
        "pgd": lambda: pgd(loss, x, THREAT, steps=2),
        "square": lambda: square(loss, x, THREAT, queries=3),
        "fab": lambda: fab(loss, x, THREAT, steps=2),
        "self_checks": lambda: self_checks(predict, x, y, THREAT),
        "within": lambda: _smallest(net, x, y).within(predict, x, y, THREAT),
    }
    with pytest.raises(
        ValueError, match=r"writes into its input .* give lambda x: model\(x.clone\(\)\)"
    ):
        calls[call]()


def _smallest(net, x, y):
    return worst_case(net, x, y, THREAT, [attack_step("fmn", minimal=True, steps=5)])


@pytest.mark.parametrize("make", [push_away, pull_toward])
def test_an_encoder_that_writes_into_its_input_is_refused(problem, make):
    net, x, _ = problem
    with pytest.raises(ValueError, match="encode writes into its input"):
        make(_writes(net, "sub_"), x.clone())


def test_any_loss_that_writes_into_its_input_is_refused():
    def loss(v):
        return v.detach().mul_(2).flatten(1).sum(1) + v.flatten(1).sum(1)

    with pytest.raises(ValueError, match="loss writes into its input"):
        pgd(loss, torch.rand(2, 3, 2, 4, 4), THREAT)


def test_a_model_that_writes_into_a_clone_gives_the_same_result(problem):
    net, x, y = problem
    steps = [attack_step("pgd", steps=5)]
    outcome = worst_case(
        lambda v: net(v.clone().sub_(0.0)), x, y, THREAT, steps, generator=seeded()
    )
    assert torch.equal(
        outcome.x_adv, worst_case(net, x, y, THREAT, steps, generator=seeded()).x_adv
    )


@pytest.mark.parametrize("call", ["worst_case", "autoattack", "pgd", "fgsm", "square", "universal"])
def test_results_keep_no_graph_of_clips_that_ask_for_a_gradient(problem, call):
    net, x, y = problem
    x = x.clone().requires_grad_()
    # too small to break anything, so that clean clips are returned
    small = ThreatModel("linf", 0.1 / 255)
    calls = {
        "worst_case": lambda: worst_case(net, x, y, small, [attack_step("pgd", steps=2)]).x_adv,
        "autoattack": lambda: autoattack(net, x, y, small, effort=0.02, checks=0),
        "pgd": lambda: pgd(Misclassify(net, y), x, small, steps=2),
        "fgsm": lambda: fgsm(Misclassify(net, y), x, small),
        "square": lambda: square(Misclassify(net, y), x, small, queries=2),
        "universal": lambda: universal(
            lambda v, labels: Misclassify(net, labels)(v), [(x, y)], small, epochs=1
        ),
    }
    result = calls[call]()
    assert not result.requires_grad
    assert result.grad_fn is None


def test_inference_mode_is_refused_and_its_tensors_are_attacked_outside_of_it(problem):
    net, x, y = problem
    with torch.inference_mode():
        x_inference = x * 1
        with pytest.raises(
            ValueError, match="torch.inference_mode: white-box attacks need gradients; leave it"
        ):
            autoattack(net, x, y, THREAT, effort=0.02)
        with pytest.raises(ValueError, match="leave it"):
            pgd(Misclassify(net, y), x, THREAT)
    steps = [attack_step("pgd", steps=3)]
    x_adv = worst_case(net, x_inference, y, THREAT, steps, generator=seeded()).x_adv
    assert torch.equal(x_adv, worst_case(net, x, y, THREAT, steps, generator=seeded()).x_adv)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.uint8])
@pytest.mark.parametrize("call", ["autoattack", "worst_case", "pgd"])
def test_clips_that_are_not_float32_or_float64_are_refused(problem, dtype, call):
    net, x, y = problem
    clips = (x > 0.5).to(dtype) if not dtype.is_floating_point else x.to(dtype)
    predict = lambda v: net(v.float())  # noqa: E731
    calls = {
        "autoattack": lambda: autoattack(predict, clips, y, THREAT),
        "worst_case": lambda: worst_case(predict, clips, y, THREAT, [attack_step("pgd")]),
        "pgd": lambda: pgd(Misclassify(predict, y), clips, THREAT),
    }
    with pytest.raises(ValueError, match=r"x.dtype=torch\..*: x must be float32 or float64; "):
        calls[call]()


@pytest.mark.parametrize("shape", [(2, 8, 3, 12, 12), (2, 16, 12, 12, 3), (2, 12, 12, 3)])
def test_channels_in_another_dimension_are_refused(shape):
    x = torch.rand(shape)
    with pytest.raises(
        ValueError, match=r"channels and a dimension of 3 elsewhere; clips are \(B, C"
    ):
        pgd(lambda v: v.flatten(1).sum(1), x, THREAT)


@pytest.mark.parametrize(
    "shape", [(2, 3, 3, 4, 4), (2, 1, 3, 4, 4), (2, 8, 5, 4, 4), (2, 3, 8, 4, 3)]
)
def test_ambiguous_shapes_are_attacked(shape):
    assert pgd(lambda v: v.flatten(1).sum(1), torch.rand(shape), THREAT, steps=2).shape == shape


def test_the_message_distinguishes_rounding_by_a_resize_from_normalised_clips():
    x = torch.rand(2, 3, 2, 4, 4)
    x[0, 0, 0, 0, 0] = 1.0000002
    with pytest.raises(ValueError, match=r"spans \[.*, 1.00000024\]; .*give x.clamp\(0, 1\)"):
        pgd(lambda v: v.flatten(1).sum(1), x, THREAT)
    with pytest.raises(ValueError, match="attack before normalisation"):
        pgd(lambda v: v.flatten(1).sum(1), x * 4 - 2, THREAT)


def test_clips_without_pixels_are_refused():
    with pytest.raises(ValueError, match=r"x of shape \(2, 3, 0, 4, 4\) has no pixels"):
        pgd(lambda v: v.flatten(1).sum(1), torch.rand(2, 3, 0, 4, 4), THREAT)


def test_unlabelled_samples_are_refused_before_anything_is_attacked(problem):
    net, x, y = problem
    calls = []

    def predict(v):
        calls.append(len(v))
        return net(v)

    with pytest.raises(
        ValueError,
        match="labels span -1 to .*the model has classes 0 to 5: leave out samples without",
    ):
        autoattack(predict, x, torch.cat([y[:5], torch.tensor([-1])]), THREAT, batch_size=2)
    # only the pass that counts the classes
    assert calls == [1]


def test_an_attack_leaves_the_norm_statistics_of_a_model_in_eval_mode_unchanged(problem):
    """In training mode any forward pass moves them."""
    net = torch.nn.Sequential(torch.nn.BatchNorm3d(3), *small_net()).eval()
    _, x, y = problem
    before = {key: value.clone() for key, value in net.state_dict().items()}
    worst_case(
        net, x, y, THREAT, suite_steps("standard", THREAT, 4, 6, effort=0.02), generator=seeded()
    )
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
