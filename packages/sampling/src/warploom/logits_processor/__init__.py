"""Pipes of logits processors, checked when they are made and fused into the fewest operator calls.

==================  ============================================================
module              what it does
==================  ============================================================
``pipe``            `LogitsPipe`
``processor``       `LogitsProcessor`, the base class of processors
``processors``      the built-in ones, a file each
``chain``           runs of built-in processors as one operator call
``fusion``          `FusionRule`, and how rules are applied
``validity``        which orders have a meaning, and the nearest that has
``types``           `TensorType`
==================  ============================================================

Examples
--------
>>> import torch
>>> from warploom.logits_processor import LogitsPipe, Sample, Softmax, Temperature, TopP
>>> pipe = LogitsPipe([Temperature(), Softmax(), TopP(), Sample()])
>>> pipe(torch.randn(4, 1000), temperature=0.7, top_p=0.9).shape
torch.Size([4])
"""

from warploom.logits_processor.fusion import FusionRule
from warploom.logits_processor.pipe import LogitsPipe
from warploom.logits_processor.processor import LogitsProcessor, Stage
from warploom.logits_processor.processors.min_p import MinP
from warploom.logits_processor.processors.sample import Sample
from warploom.logits_processor.processors.softmax import Softmax
from warploom.logits_processor.processors.temperature import Temperature
from warploom.logits_processor.processors.top_k import TopK
from warploom.logits_processor.processors.top_p import TopP
from warploom.logits_processor.types import TensorType
from warploom.logits_processor.validity import PipeOrderError, ValidityCheck, Violation

__all__ = [
    "FusionRule",
    "LogitsPipe",
    "LogitsProcessor",
    "MinP",
    "PipeOrderError",
    "Sample",
    "Softmax",
    "Stage",
    "Temperature",
    "TensorType",
    "TopK",
    "TopP",
    "ValidityCheck",
    "Violation",
]
