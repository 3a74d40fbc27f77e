"""What turns images, words and state into a condition; no encoder knows how chunks are made from it."""

from flow_vla_core.encoders.fusion import Fusion, StateEncoder
from flow_vla_core.encoders.image import ImageEncoder, SpatialSoftmax
from flow_vla_core.encoders.language import LanguageEncoder, Vocabulary, drop_words

__all__ = ['Fusion', 'ImageEncoder', 'LanguageEncoder', 'SpatialSoftmax', 'StateEncoder', 'Vocabulary', 'drop_words']
