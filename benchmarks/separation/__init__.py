"""The separation benchmark: how well methods separate content from style."""
