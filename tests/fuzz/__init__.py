"""Fuzzing: inputs made from a seed, run by the hundred thousand. `make fuzz`, or here `python -m fuzz --help`."""
