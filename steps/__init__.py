"""The seven steps: unpack, call the library, log, return."""
