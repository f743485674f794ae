"""The steps: unpack, call the library, log, return."""
