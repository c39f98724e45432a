"""Vision Transformer with Deformable Attention (DAT): the layer, the models, exact checkpoints, training, figures.

Importing registers the models with timm: ``timm.create_model("dat_tiny")``.
"""

from deformvit.errors import UserError
from deformvit.layers import DeformableAttention
from deformvit.models import DAT
from deformvit.models.convert import convert_official, load_official
from deformvit.models.files import load as load_model
from deformvit.models.files import save as save_model
from deformvit.models.official import model_from_official
from deformvit.models.trace import record_points

__version__ = "0.1.0"

__all__ = [
    "DAT",
    "DeformableAttention",
    "UserError",
    "__version__",
    "convert_official",
    "load_model",
    "load_official",
    "model_from_official",
    "record_points",
    "save_model",
]
