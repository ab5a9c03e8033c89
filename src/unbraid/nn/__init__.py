"""Networks: layers, surgery, healing, scanning, saving."""

from unbraid.nn.architecture import COUNTING_RULE, Architecture, TensorLayer
from unbraid.nn.checkpoint import load_pretrained, save_pretrained
from unbraid.nn.conversion import Conversion, convert_layers, describe_conversions
from unbraid.nn.convolution import MPOConv2d
from unbraid.nn.embedding import MPOEmbedding
from unbraid.nn.heal import History, accuracy, heal
from unbraid.nn.layers import DisentangledLinear, MPOLinear
from unbraid.nn.riemannian import RiemannianAdam
from unbraid.nn.scan import LayerScan, scan
from unbraid.nn.start import start_from
from unbraid.nn.status import LayerStatus, describe_status, get_layer_status
from unbraid.nn.surgery import disentangle_layers, merge_back, tensorize
from unbraid.nn.targets import match_layers

__all__ = [
    "COUNTING_RULE",
    "Architecture",
    "Conversion",
    "DisentangledLinear",
    "History",
    "LayerScan",
    "LayerStatus",
    "MPOConv2d",
    "MPOEmbedding",
    "MPOLinear",
    "RiemannianAdam",
    "TensorLayer",
    "accuracy",
    "convert_layers",
    "describe_conversions",
    "describe_status",
    "disentangle_layers",
    "get_layer_status",
    "heal",
    "load_pretrained",
    "match_layers",
    "merge_back",
    "save_pretrained",
    "scan",
    "start_from",
    "tensorize",
]
