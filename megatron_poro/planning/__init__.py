"""What a run will need and take, before it is submitted: memory of every rank, time of a step, days, disk, cost; loads no torch.

Formulas are pure functions with their units and sources; parameters, optimizer shards and checkpoint bytes can be counted exactly
by building the real model of any rank (`exact.py`, the only part that needs the engine).
"""
