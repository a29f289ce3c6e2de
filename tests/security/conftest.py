"""The fixtures of the command line."""

from tests.cli.conftest import leftovers, photos, refused, settings, shelf, two_projects, unziplora

__all__ = ["leftovers", "photos", "refused", "settings", "shelf", "two_projects", "unziplora"]
