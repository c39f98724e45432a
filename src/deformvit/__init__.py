"""Vision Transformer with Deformable Attention (DAT): the layer, the models, exact checkpoints, training, figures.

Importing registers the models with timm: ``timm.create_model("dat_tiny")``.
"""

from deformvit.errors import UserError
from deformvit.inference import Predictor, load
from deformvit.layers import DeformableAttention, NeighborhoodAttention
from deformvit.models import DAT
from deformvit.models.descriptions import ClassifierDescription, DetectorDescription, SegmenterDescription
from deformvit.models.files import load_model, save_model
from deformvit.models.hub import push_to_hub, save_for_hub
from deformvit.models.released.config import model_from_released
from deformvit.models.released.weights import convert_released, load_released
from deformvit.models.trace import record

__version__ = "0.1.0"

__all__ = [
    "DAT",
    "ClassifierDescription",
    "DeformableAttention",
    "DetectorDescription",
    "NeighborhoodAttention",
    "Predictor",
    "SegmenterDescription",
    "UserError",
    "__version__",
    "convert_released",
    "load",
    "load_model",
    "load_released",
    "model_from_released",
    "push_to_hub",
    "record",
    "save_for_hub",
    "save_model",
]
