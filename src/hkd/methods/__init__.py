"""The distillation methods, one file each. A file of this folder is found without being listed anywhere."""

from typing import TYPE_CHECKING

from hkd.lazy import lazy

if TYPE_CHECKING:
    from hkd.methods.base import Initialisation as Initialisation
    from hkd.methods.base import Method as Method
    from hkd.methods.base import NoConfig as NoConfig
    from hkd.methods.base import Progress as Progress
    from hkd.methods.base import Setup as Setup
    from hkd.methods.base import Weights as Weights
    from hkd.methods.base import methods as methods
    from hkd.methods.create import create_method as create_method
    from hkd.methods.create import list_methods as list_methods
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "hkd.methods.base": ("Initialisation", "Method", "NoConfig", "Progress", "Setup", "Weights", "methods"),
            "hkd.methods.create": ("create_method", "list_methods"),
        },
    )
