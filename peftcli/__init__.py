"""Fine-tune language models with parameter-efficient methods: recipe in, adapter, report and verified merge out."""

from peftcli.errors import PeftcliError

__version__ = "0.1.0"

__all__ = ["PeftcliError", "__version__"]
