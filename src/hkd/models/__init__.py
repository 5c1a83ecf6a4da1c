"""The networks: the zoo of the field's benchmark, and everybody else's. A file of this folder that registers a network
is found without being listed anywhere."""

from typing import TYPE_CHECKING

from hkd.lazy import lazy

if TYPE_CHECKING:
    from hkd.models.base import CifarModel as CifarModel
    from hkd.models.base import Model as Model
    from hkd.models.base import ModelInfo as ModelInfo
    from hkd.models.base import models as models
    from hkd.models.create import create_model as create_model
    from hkd.models.create import list_models as list_models
    from hkd.models.external import wrap_model as wrap_model
    from hkd.models.names import model_of_file as model_of_file
    from hkd.models.names import names_code as names_code
    from hkd.models.weights import load_checkpoint as load_checkpoint
    from hkd.models.weights import read_model as read_model
    from hkd.models.weights import save_model as save_model
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "hkd.models.base": ("CifarModel", "Model", "ModelInfo", "models"),
            "hkd.models.create": ("create_model", "list_models"),
            "hkd.models.external": ("wrap_model",),
            "hkd.models.names": ("model_of_file", "names_code"),
            "hkd.models.weights": ("load_checkpoint", "read_model", "save_model"),
        },
    )
