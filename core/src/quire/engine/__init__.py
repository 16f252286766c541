"""The step loop and its fronts."""
