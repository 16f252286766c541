"""Looks up where the latest tokens occurred before: `plugin` registers it, `index` finds, `drafter` proposes."""
