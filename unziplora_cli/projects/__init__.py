"""Projects on disk: names, manifest, folders, hashes and locks."""
