"""Train: the loop, optimizers, run folders."""
