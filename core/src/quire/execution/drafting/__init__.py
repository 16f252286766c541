"""Drafts of a step: asking drafters, deciding how many, and draft models beside the target."""
