"""Metric modules for the `evaluate` library, kept here so that they load without a network.

`evaluate.load("rouge")` fetches a script from the Hub; `evaluate.load("/absolute/.../rouge")` reads
the one in the folder of that name. `evaluate` copies the file into its own cache and imports the
copy. It finds a file's imports by regular expression: keep every `import` on a line of its own.
"""
