"""The command line, and the ZenML glue that is no step: stack, run folder, lineage, plan."""
