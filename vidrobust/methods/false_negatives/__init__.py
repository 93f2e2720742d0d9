"""Find and remove false negatives (Gupta et al. 2022)."""
