"""The page in the browser: the same workflows as the commands, on this machine."""
