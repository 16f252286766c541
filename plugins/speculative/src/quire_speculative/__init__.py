"""Drafters: they guess the next tokens of running requests, and the target model verifies them."""
