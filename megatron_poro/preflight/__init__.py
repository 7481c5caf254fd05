"""Preflight: what would go wrong with a run, said on a login node before it costs anything. Loads no torch but where it must."""
