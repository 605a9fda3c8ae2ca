"""The one place of the version: of package, pipeline and image."""

__version__ = "0.1.0"
