"""Time the parts of the package, compared with other libraries and published formulas."""
