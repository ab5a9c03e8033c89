"""Networks: layers, surgery, healing, scanning, saving."""

from unbraid.nn.allocation import Allocation, allocate
from unbraid.nn.architecture import COUNTING_RULE, Architecture, TensorLayer
from unbraid.nn.calibration import InputMoments, input_moments
from unbraid.nn.checkpoint import load_pretrained, save_pretrained
from unbraid.nn.conversion import Conversion, convert_layers, describe_conversions
from unbraid.nn.convolution import MPOConv2d
from unbraid.nn.depth import DepthTrend, depth_trends, describe_depth
from unbraid.nn.embedding import MPOEmbedding
from unbraid.nn.entanglement import (
    AttentionEntropies,
    LayerProfile,
    attention_entropies,
    attention_profile,
    entanglement_profiles,
)
from unbraid.nn.gauge import fix_gauge
from unbraid.nn.heal import History, accuracy, heal
from unbraid.nn.layers import DisentangledLinear, MPOLinear
from unbraid.nn.quantization import quantize
from unbraid.nn.riemannian import RiemannianAdam
from unbraid.nn.scan import LayerScan, scan
from unbraid.nn.sensitivity import LayerSensitivity, SensitivityPoint, sensitivity
from unbraid.nn.slices import heal_slices
from unbraid.nn.start import start_from
from unbraid.nn.status import LayerStatus, describe_status, get_layer_status, model_bytes
from unbraid.nn.surgery import disentangle_layers, merge_back, tensorize
from unbraid.nn.targets import match_layers
from unbraid.nn.task import (
    Task,
    causal_language_model,
    classification,
    regression,
    sentence_embedding,
)
from unbraid.nn.verdict import verdict

__all__ = [
    "COUNTING_RULE",
    "Allocation",
    "Architecture",
    "AttentionEntropies",
    "Conversion",
    "DepthTrend",
    "DisentangledLinear",
    "History",
    "InputMoments",
    "LayerProfile",
    "LayerScan",
    "LayerSensitivity",
    "LayerStatus",
    "MPOConv2d",
    "MPOEmbedding",
    "MPOLinear",
    "RiemannianAdam",
    "SensitivityPoint",
    "Task",
    "TensorLayer",
    "accuracy",
    "allocate",
    "attention_entropies",
    "attention_profile",
    "causal_language_model",
    "classification",
    "convert_layers",
    "depth_trends",
    "describe_conversions",
    "describe_depth",
    "describe_status",
    "disentangle_layers",
    "entanglement_profiles",
    "fix_gauge",
    "get_layer_status",
    "heal",
    "heal_slices",
    "input_moments",
    "load_pretrained",
    "match_layers",
    "merge_back",
    "model_bytes",
    "quantize",
    "regression",
    "save_pretrained",
    "scan",
    "sensitivity",
    "sentence_embedding",
    "start_from",
    "tensorize",
    "verdict",
]
