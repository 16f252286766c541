"""A route of Quire's server."""
