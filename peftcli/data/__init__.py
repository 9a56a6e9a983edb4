"""Sources, formats, chat rendering, the loss mask and its proof, mixing, the doctor, and the token cache."""

from peftcli.data.config import DataConfig, SourceConfig

__all__ = ["DataConfig", "SourceConfig"]
