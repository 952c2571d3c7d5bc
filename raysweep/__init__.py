"""raysweep: how deep should I fine-tune this pretrained network on my images?"""

__version__ = "0.1.0"
