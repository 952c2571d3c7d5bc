"""Helper: small transformers for 32 pixels, with dropout of values and of paths; importing this tells timm of them."""

from timm.models import register_model
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer


@register_model
def raysweep_vit(pretrained=False, **_):
    """A ViT."""
    assert not pretrained
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    return VisionTransformer(**sizes, pos_drop_rate=0.1, drop_rate=0.2, proj_drop_rate=0.2, drop_path_rate=0.4)


@register_model
def raysweep_swin(pretrained=False, **_):
    """A Swin transformer: windows have dropout of their own, one tensor has five axes, no batch may be empty."""
    assert not pretrained
    sizes = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 16, "depths": (2, 1), "num_heads": (2, 4)}
    return SwinTransformer(**sizes, drop_rate=0.1, proj_drop_rate=0.2, drop_path_rate=0.4)


VIT, SWIN = raysweep_vit.__name__, raysweep_swin.__name__
