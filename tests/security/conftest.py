"""The fixtures of the command line."""

from tests.cli.conftest import (
    assert_fails,
    home_files,
    photos,
    settings,
    trained_home,
    two_projects,
    unziplora,
)

__all__ = ["assert_fails", "home_files", "photos", "settings", "trained_home", "two_projects", "unziplora"]
