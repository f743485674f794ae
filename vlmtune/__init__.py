"""vlmtune: fine-tune vision-language models on product catalogs.

The library knows nothing of ZenML: it can be imported in a notebook, on a bare GPU machine or
by `torchrun`. Only `vlmtune.tracking` talks to MLflow. The pipeline that schedules it lives in
`pipelines/` and `steps/`.
"""

__version__ = "0.1.0"
