"""Steps written down as native calls, and run again in one parallel region."""
