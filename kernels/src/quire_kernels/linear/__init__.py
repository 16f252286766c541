"""The op `linear`: a product with a weight in panels."""
