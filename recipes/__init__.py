"""How the data that ships with the package was made."""
