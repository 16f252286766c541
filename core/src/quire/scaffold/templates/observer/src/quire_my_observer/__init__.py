"""An observer of Quire's engine."""
