"""The use cases: each takes a frozen order, tells about its progress, and returns a frozen outcome."""
