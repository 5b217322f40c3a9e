"""The one place that states the release: the package, the agent string of profiles and the CLI read it here."""

__version__ = "0.1.0"
