"""What tests of Quire and of its plugins use: tiny models, forward passes, conformance suites."""
