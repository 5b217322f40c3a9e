"""The configuration: what the files, the environment and the flags say, checked, as one frozen value."""

from nexapod.config.errors import ConfigError
from nexapod.config.settings import Config, Flags, config_folder, default_home, load

__all__ = ["Config", "ConfigError", "Flags", "config_folder", "default_home", "load"]
