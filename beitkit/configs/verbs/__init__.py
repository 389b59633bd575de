"""What each verb of the command line takes; the Python functions of the same names take the same fields.

Fields directly in a verb, and those of its `Flat` parts, are what people change; the nested rest is written with a prefix
(`--optim.clip`) and shown after them. Only this package is imported for `--help` and for mistyped options, so nothing here
may import torch.
"""

from beitkit.configs.verbs.ablate import AblateRun
from beitkit.configs.verbs.checkpoints import (
    CheckpointFormat,
    ConvertRun,
    ExportRun,
    InspectRun,
    ProgramFormat,
    ShowLoadRun,
    Task,
)
from beitkit.configs.verbs.demo import DemoRun
from beitkit.configs.verbs.finetune import FinetuneRun
from beitkit.configs.verbs.judge import EvaluateRun, ProbeRun
from beitkit.configs.verbs.pack import IndexRun, PackRun
from beitkit.configs.verbs.parts import Flat, NetworkConfig
from beitkit.configs.verbs.plan import PlanRun
from beitkit.configs.verbs.predict import EmbedRun, EngineName, Pool, PredictRun
from beitkit.configs.verbs.pretrain import PretrainRun
from beitkit.configs.verbs.recipes import RecipesRun
from beitkit.configs.verbs.segment import SegmentRun
from beitkit.configs.verbs.tokenize import TokenizeRun
from beitkit.configs.verbs.tokenizer import TokenizerRun

__all__ = [
    "AblateRun",
    "CheckpointFormat",
    "ConvertRun",
    "DemoRun",
    "EmbedRun",
    "EngineName",
    "EvaluateRun",
    "ExportRun",
    "FinetuneRun",
    "Flat",
    "IndexRun",
    "InspectRun",
    "NetworkConfig",
    "PackRun",
    "PlanRun",
    "Pool",
    "PredictRun",
    "PretrainRun",
    "ProbeRun",
    "ProgramFormat",
    "RecipesRun",
    "SegmentRun",
    "ShowLoadRun",
    "Task",
    "TokenizeRun",
    "TokenizerRun",
]
