"""What every run needs: the loop, optimizers, checkpoints, collectives, logs."""
