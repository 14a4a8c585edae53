"""Pre-training methods and distillation."""
