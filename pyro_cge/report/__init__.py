"""Reports: run folders as one self-contained web page, readable offline, on a phone and in print."""

from .page import write

__all__ = ["write"]
