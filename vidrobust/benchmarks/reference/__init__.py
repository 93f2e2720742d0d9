"""Published formulas, written plainly, to time and compare with."""
