"""Training: the losses and stages of docs/model.md section 8, data from real clips, LoRA."""
