"""Check whether this machine can train: ``environment`` collects facts, ``checks`` draws conclusions.

Nothing here imports torch, so that a missing or broken torch is reported like any other problem.
"""
