"""The jobs: train a network, distil one, test one.

``data`` opens the images, ``trained`` finds trained networks, ``parts`` builds what a run is made of, ``running``
carries it out, and ``work`` has the jobs themselves.
"""

from hkd.data.open import Data, open_data
from hkd.jobs.running import Result
from hkd.jobs.work import check_continuation, check_request, distill, evaluate, train
from hkd.trained import Trained, find_trained, open_test

__all__ = [
    "Data", "Result", "Trained", "check_continuation", "check_request", "distill", "evaluate", "find_trained",
    "open_data", "open_test", "train",
]  # fmt: skip
