"""Looks at a catalog and guesses what its columns mean."""
