"""Sampling: penalties, the likeliest token, and draws with temperature, min_p, top_k and top_p."""
