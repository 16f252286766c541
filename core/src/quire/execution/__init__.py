"""Running a plan: batch, forward pass, sampling."""
