"""Teacher outputs on disk, by image and view: they are kept, used, and planned with."""

from compress.teacher.cache.planning import STORED, expected_hit_share, obstacle, planning_note
from compress.teacher.cache.rows import OutputCache, images_kept, row_bytes
from compress.teacher.cache.teacher import CachedTeacher

__all__ = [
    "STORED",
    "CachedTeacher",
    "OutputCache",
    "expected_hit_share",
    "images_kept",
    "obstacle",
    "planning_note",
    "row_bytes",
]
