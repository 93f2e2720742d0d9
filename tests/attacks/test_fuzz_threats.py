"""Check that any name of a threat model is read back as written, or refused in one line."""

import math
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vidrobust.attacks import ThreatModel, parse_threat

FUZZ = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=500,
    suppress_health_check=list(HealthCheck),
)
NORMS = st.sampled_from(["linf", "l2", "l2_frame", "l1"])
SUPPORTS = st.sampled_from(["dense", "tube", "flicker", "frames", "patch", "border", "pixels"])
PLACES = st.one_of(
    st.sampled_from(["", "saliency", "uniform", "random", "search", "nowhere"]),
    st.lists(st.integers(0, 40), min_size=1, max_size=4).map(tuple),
)
EPS = st.one_of(
    st.sampled_from([0.0, 0.5 / 255, 1 / 255, 4 / 255, 8 / 255, 0.03, 0.5, 1.0, 1e-12, 1e-300]),
    st.floats(0, 1),
    st.floats(0, 1e30),
)


def _read(text):
    """Return the threat, or None where a ValueError of one line refuses it."""
    try:
        return parse_threat(text)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        return None


@FUZZ
@given(NORMS, EPS, SUPPORTS, st.integers(0, 40), PLACES)
@example("linf", 8 / 255, "frames", 2, (0, 5))
@example("linf", 1.0, "patch", 30, (10, 12))
@example("linf", 1.0, "frames", 1, (0, 0))
@example("l2", 1e30, "dense", 0, "")
def test_a_threat_is_read_back_from_its_name(norm, eps, support, k, place):
    try:
        threat = ThreatModel(norm, eps, support, k, place)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        return
    again = parse_threat(str(threat))
    assert str(again) == str(threat)
    assert (again.norm, again.support, again.k, again.place) == (norm, support, k, place)
    # names have 12 digits
    assert math.isclose(again.eps, eps, rel_tol=1e-11, abs_tol=0)
    assert parse_threat(f"  {threat} ") == again


# parts of names, and what parsers often get wrong: huge numbers, other digits, line breaks
_PIECES = st.sampled_from(
    [
        "linf",
        "l2",
        "l2_frame",
        "l1",
        "-",
        "/",
        "@",
        "+",
        "frames",
        "patch",
        "border",
        "pixels",
        "tube",
        "flicker",
        "dense",
        "saliency",
        "random",
        "uniform",
        "search",
        "4/255",
        "0",
        "1",
        "2",
        "30",
        "255",
        "1e39",
        "1e400",
        "1e-400",
        "e",
        ".",
        ".5",
        "inf",
        "nan",
        "9" * 40,
        "9" * 5000,
        "\u0663",
        "\n",
        "\u2028",
        " ",
        "'",
        "\x1b",
    ]
)


@FUZZ
@given(st.one_of(st.lists(_PIECES, max_size=8).map("".join), st.text(max_size=20)))
@example("linf-4/255")
@example("linf-4")
@example("l2-1e39")
@example("linf-1e400")
@example("l2-1/1e-400")
@example("linf-1/0")
@example("frames1@0+0-linf-1")
@example("frames" + "9" * 5000 + "-linf-1")
@example("patch30@10+12-linf-1")
@example("linf-" + "9" * 5000)
@example("linf--1")
@example("linf-1e")
@example("linf-1/2/3")
def test_any_text_is_read_or_refused_in_one_line(text):
    threat = _read(text)
    if threat is not None:
        assert 0 <= threat.eps < math.inf
        assert str(parse_threat(str(threat))) == str(threat)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("frames1@0+0-linf-1", "frames take k different"),
        ("frames2@1+1-linf-1", "frames take k different"),
        ("frames2@1-linf-1", "frames take k different"),
        ("patch3@1-linf-1", r"a patch takes (top, left)"),
        ("patch-linf-1", "k must be the number of frames or pixels"),
        ("tube3-linf-1", "k is for frames, patch, border and pixels only"),
        ("patch3@uniform-linf-1", "must be one of search, random"),
        ("roof-linf-1", "no threat model linf x roof"),
        ("linf-4", "write 4/255"),
        ("linf-1/0", "is no number; write 0.03 or 8/255"),
        ("linf-1e400", "must be at least 0"),
        ("linf-nan", "is no threat model"),
        ("", "is no threat model; write norm-eps"),
    ],
)
def test_texts_that_are_no_threats_are_refused_with_the_reason(text, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse_threat(text)
