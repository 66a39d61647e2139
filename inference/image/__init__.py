"""The picture intake: hostile bytes in, `[crop, crop, 3]` uint8 out. NumPy and Pillow only, no torch.

`intake` asks `jpeg`, `png` or `webp` to walk the container: that checks every bound before a pixel is allocated, finds the EXIF
orientation, and copies only what pixels are made of. Pillow decodes that copy, `colour` makes it RGB, and `fit` resizes and crops it.
"""

from inference.image.intake import DecodedImage, decode

__all__ = ["DecodedImage", "decode"]
