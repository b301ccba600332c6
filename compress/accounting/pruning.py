"""The pruning ratio of SimKD (Chen et al., CVPR 2022, eq. 6) and what goes with it.

    ratio = 1 - (p_se + p_proj + p_tc - p_sc) / p_t

with the parameters of the student (p_se), projector (p_proj), the reused teacher classifier
(p_tc), the dropped student classifier (p_sc) and the whole teacher (p_t). The numerator is the
parameter count of the network that is deployed, so no part has to be known here; the paper's
values follow if p_se is the student with its classifier (Table S.10: 80.52 %, cut off, for
resnet32x4 -> resnet8x4 with r = 2).
"""


def pruning_ratio_percent(deployed_parameters: int, teacher_parameters: int) -> float:
    """Share of the teacher's parameters that is gone: 100 * (1 - deployed / teacher).

    Negative where the deployed network is the larger one. With the bare student's parameters it
    is the ratio of vanilla distillation, where nothing is added to the student.
    """
    if teacher_parameters <= 0:
        raise ValueError(f"a teacher with {teacher_parameters} parameters has no pruning ratio")
    return 100.0 * (1.0 - deployed_parameters / teacher_parameters)


def pruning_ratio_cost_points(
    deployed_parameters: int, student_parameters: int, teacher_parameters: int
) -> float:
    """Points of pruning ratio lost against the bare student (first number in Table S.8).

    Negative where the deployed network is smaller than the bare student, which happens when
    projector and teacher classifier together are smaller than the student's classifier.
    """
    return pruning_ratio_percent(student_parameters, teacher_parameters) - pruning_ratio_percent(
        deployed_parameters, teacher_parameters
    )


def projector_to_student_percent(projector_parameters: int, student_parameters: int) -> float:
    """Projector relative to the whole bare student (second number in Table S.8)."""
    if student_parameters <= 0:
        raise ValueError(f"a student with {student_parameters} parameters has no projector share")
    return 100.0 * projector_parameters / student_parameters
