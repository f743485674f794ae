"""The configuration: one frozen pydantic tree, which is the YAML's schema.

Nothing here imports torch, transformers, trl or zenml, so that a config is checked within a
fraction of a second. Each section has a module of its own: a step that uses one section is not
run again because another section's schema changed.
"""
