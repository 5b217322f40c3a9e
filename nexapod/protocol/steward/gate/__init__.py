"""One seat of a job's gate: which workers are admitted, and the chance that draws among them."""
