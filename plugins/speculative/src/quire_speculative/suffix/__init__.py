"""Follows the most frequent continuation, in the request and in earlier outputs of its salt."""
