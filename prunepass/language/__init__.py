"""Language models alone: compiling them so that decoding reads a part of the weights."""

from prunepass.language.compile import compile
from prunepass.language.generate import LanguageBundle, load
from prunepass.language.macs import decoder_macs
from prunepass.language.programs import capture

__all__ = ["LanguageBundle", "capture", "compile", "decoder_macs", "load"]
