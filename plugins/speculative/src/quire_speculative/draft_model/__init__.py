"""Drafts with a small model: `plugin` registers it, `drafter` proposes; core runs the model."""
