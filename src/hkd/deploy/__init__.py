"""A trained network as files that others can run, with a model card."""

from hkd.deploy.exporting import Check as Check
from hkd.deploy.exporting import Deployed as Deployed
from hkd.deploy.exporting import Exported as Exported
from hkd.deploy.exporting import export as export
