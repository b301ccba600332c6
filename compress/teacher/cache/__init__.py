"""Teacher outputs on disk, by image and view: they are kept, used, and planned with."""

from compress.teacher.cache.planning import STORED, expected_hit_share, obstacle, planning_remark
from compress.teacher.cache.rows import TeacherCache, images_kept, row_bytes
from compress.teacher.cache.teacher import CachedTeacher

__all__ = [
    "STORED",
    "CachedTeacher",
    "TeacherCache",
    "expected_hit_share",
    "images_kept",
    "obstacle",
    "planning_remark",
    "row_bytes",
]
