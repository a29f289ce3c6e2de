"""The built-in base ``mini``: its pictures, its training and its classifier."""
