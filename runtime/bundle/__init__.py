"""Bundles for app developers: a voice's packages, and all that an app has to do around them, with numbers to check it by.

`capture` converts a clip with the product's own pipeline and keeps what passes through it, `constants` and `folder` write
what the host computes with, `steps` says what it computes, `contract` puts all of it in one JSON, and `page` shows that.
"""

from .contract import SCHEMA_VERSION
from .writing import CONTRACT, PAGE, write_bundle

__all__ = ["CONTRACT", "PAGE", "SCHEMA_VERSION", "write_bundle"]
