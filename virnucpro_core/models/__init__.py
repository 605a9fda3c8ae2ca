"""Named models, and the modules that they are made of."""

DEFAULT = "mini"
"""The model where none is named, by the command line, by `vnp.predict` and by the pipeline."""
