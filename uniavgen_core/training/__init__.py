"""Training: the losses and stages of SPEC section 8, and the synthetic theatre for the embedded model."""
