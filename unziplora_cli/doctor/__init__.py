"""What this machine can do: ``machine`` looks, ``environment`` is what it saw, ``checks`` judge it.

Nothing here imports torch, so that a broken or missing torch can be told of.
"""
