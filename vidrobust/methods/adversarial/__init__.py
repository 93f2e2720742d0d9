"""Adversarial views in training, and the losses over them."""
