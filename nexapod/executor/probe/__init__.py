"""Attempts to break out of a sandbox, and what each must come to: for `nexapod doctor` and for the tests."""
