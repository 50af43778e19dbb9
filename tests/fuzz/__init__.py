"""Fuzzing: inputs made from a seed, run by the hundred thousand. `make fuzz`, or `python -m tests.fuzz --help`."""
