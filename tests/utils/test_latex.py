"""Names that LaTeX would read are escaped."""

from vidrobust.utils.latex import latex_escape


def test_what_latex_reads_is_escaped():
    assert latex_escape("50% of a_b & c") == r"50\% of a\_b \& c"


def test_two_hyphens_are_no_dash():
    assert latex_escape("a--b") == "a-{}-b"


def test_brackets_are_no_argument_of_the_line_break_before_them():
    assert latex_escape("[1]*") == "{[}1{]}{*}"


def test_a_name_is_one_line():
    assert latex_escape("a\nb") == r"a\textbackslash{}nb"
