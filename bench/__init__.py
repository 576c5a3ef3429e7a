"""Benchmarks: Mantler beside its peers, one server alone, a long mixed load, a new user's first answer."""
