"""Frozen values: what travels between the parts. numpy at most, no torch."""

from crucible_train.types.artifact import ArtifactRef
from crucible_train.types.datum import Datum, TensorData, TokensWithLogprobs
from crucible_train.types.estimate import Estimate
from crucible_train.types.hardware import Hardware
from crucible_train.types.loss import (
    CISPO,
    DPO,
    DRO,
    GSPO,
    IPO,
    KTO,
    ORPO,
    PPO,
    AdamParams,
    AnyPreferenceLoss,
    BradleyTerry,
    CrossEntropy,
    CustomLoss,
    Divergence,
    ImportanceSampling,
    KLEstimator,
    Loss,
    PolicyLoss,
    PreferenceLoss,
    SimPO,
)
from crucible_train.types.messages import (
    Conversation,
    ImagePart,
    Message,
    TextPart,
    ThinkingPart,
    ToolCall,
    conversation,
)
from crucible_train.types.model_input import EncodedTextChunk, ImageChunk, ModelInput
from crucible_train.types.preference import Preference
from crucible_train.types.sampling import SamplerStats, SamplingParams

__all__ = [
    "CISPO",
    "DPO",
    "DRO",
    "GSPO",
    "IPO",
    "KTO",
    "ORPO",
    "PPO",
    "AdamParams",
    "AnyPreferenceLoss",
    "ArtifactRef",
    "BradleyTerry",
    "Conversation",
    "CrossEntropy",
    "CustomLoss",
    "Datum",
    "Divergence",
    "EncodedTextChunk",
    "Estimate",
    "Hardware",
    "ImageChunk",
    "ImagePart",
    "ImportanceSampling",
    "KLEstimator",
    "Loss",
    "Message",
    "ModelInput",
    "PolicyLoss",
    "Preference",
    "PreferenceLoss",
    "SamplerStats",
    "SamplingParams",
    "SimPO",
    "TensorData",
    "TextPart",
    "ThinkingPart",
    "TokensWithLogprobs",
    "ToolCall",
    "conversation",
]
