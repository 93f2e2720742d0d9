"""Threat strings of a fuzzer: refused in one line, or read as they are written and attacked."""

import pytest
import torch

from vidrobust.attacks import contains, parse_threat, pgd
from vidrobust.attacks.threat import require_fit

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies
FAST = hypothesis.settings(max_examples=300, deadline=None, derandomize=True)

NORMS = st.sampled_from(["linf", "l2", "l1", "l2_frame", "l3", ""])
SUPPORTS = st.sampled_from(
    ["", "dense", "tube", "flicker", "frames", "patch", "border", "pixels", "frame", "Frames"]
)
COUNTS = st.sampled_from(["", "0", "1", "2", "3", "99999999999999999999", "-1", "1.5"])
PLACES = st.one_of(
    st.sampled_from(["", "@saliency", "@uniform", "@random", "@search", "@", "@x", "@0+", "@-1"]),
    st.lists(st.integers(0, 5), max_size=4).map(lambda at: "@" + "+".join(map(str, at))),
    st.just("@99999999999999999999+1"),
)
SIZES = st.one_of(
    st.sampled_from(
        [
            "8/255",
            "0",
            "1e39",
            "1e-40",
            "1e400",
            "1/0",
            "/",
            "-1",
            "+.5",
            "e",
            "nan",
            "1e18",
            "1e19",
        ]
    ),
    st.floats(0, 1e20, allow_nan=False).map(str),
)
NAMES = st.builds(
    lambda support, k, place, norm, eps: (
        f"{support}{k}{place}-{norm}-{eps}" if support else f"{norm}-{eps}"
    ),
    SUPPORTS,
    COUNTS,
    PLACES,
    NORMS,
    SIZES,
)


def _parsed(text):
    """The threat, or None; anything but one line of ValueError is a failure."""
    try:
        return parse_threat(text)
    except ValueError as error:
        assert "\n" not in str(error)
        assert str(error)
        return None


@FAST
@hypothesis.given(st.one_of(NAMES, st.text(max_size=30)))
@hypothesis.example("frames1@0+0-linf-4/255")
@hypothesis.example("l2-1e39")
@hypothesis.example("patch2@3-linf-1")
def test_what_is_read_is_what_is_written(text):
    threat = _parsed(text)
    if threat is not None:
        assert parse_threat(str(threat)).kind == threat.kind
        assert parse_threat(str(threat)).eps == pytest.approx(threat.eps, rel=1e-9, abs=1e-300)


@hypothesis.settings(FAST, max_examples=150)
@hypothesis.given(NAMES)
@hypothesis.example("frames2@0+0-linf-4/255")
@hypothesis.example("l2-1e18")
@hypothesis.example("l2-1e-40")
def test_what_fits_is_attacked_within_its_budget(text):
    x = torch.rand(2, 3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    threat = _parsed(text)
    if threat is None:
        return
    try:
        require_fit(threat, x)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    generator = torch.Generator().manual_seed(0)
    found = pgd(lambda v: v.flatten(1).sum(1), x, threat, steps=2, generator=generator)
    assert contains(threat, x, found).all()
