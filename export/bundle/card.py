"""MODEL_CARD.md: contents of a bundle, origin, accuracy, speed and limits of its network."""

from collections.abc import Mapping
from typing import Any

from compress.model_files.artifacts import is_dense
from compress.tasks import task_for
from compress.text import one_line, printable
from export.bundle.contents import FLAVOURS, FULL_RANGE, OF_A_LOADER, embeds
from export.bundle.front_matter import front_matter
from export.bundle.interfaces import FileInterface, InputInterface, OutputInterface
from export.bundle.snippet import snippet

# How far an int8 file is below the trained network: key of a trial -> title.
_DROPS = {"top1_drop": "top-1 drop", "miou_drop": "mean IoU drop"}


def model_card(facts: Mapping[str, Any]) -> str:
    """The card as Markdown.

    Args:
        facts: `student` (the content of student.json), `data` (the recipe's data section), `name`,
            `remark` (why it is not the recommended student, or None), `license` (None: not
            stated), `parity`, `int8` (None without it), `int8_refused` (why it was left out, or
            None), `int8_search` (what was tried, or None), `files` (name -> bytes), `latency` (see
            `.timing`, or None), `costs` (of `account`, or None), `training` and `teachers` (values
            of the distill and teacher stages), `machine` (the environment), `preprocess` (the
            content of its file), `preparation` and `interfaces` (as the manifest has them).
    """
    gives_embeddings, dense = embeds(facts["student"]), is_dense(facts["student"])
    accuracy = _of_pixels if dense else _fidelity if gives_embeddings else _accuracy
    sections = [
        f"{front_matter(facts)}\n# {facts['name']}",
        _summary(facts),
        "## Use\n\n" + _use(facts),
        "## Inputs and outputs\n\n" + _interfaces(facts),
        "## Accuracy\n\n" + accuracy(facts),
        "## Size and speed\n\n" + _speed(facts),
        "## How it was made\n\n" + _origin(facts),
        "## Limits\n\n" + _limits(gives_embeddings, dense),
    ]
    return printable("\n\n".join(section.strip() for section in sections) + "\n")


def _summary(facts: Mapping[str, Any]) -> str:
    student = facts["student"]
    size = student["preprocessing"]["image_size"]
    remark = f"**Not the recommended student**: {facts['remark']}.\n\n" if facts["remark"] else ""
    name = one_line(student["architecture"]["name"])
    text = (
        f"{remark}An image classifier: {name}, {student['num_classes']} classes "
        f"(`labels.txt`), RGB images of {size} x {size} pixels."
    )
    if embeds(student):
        text = (
            f"{remark}An image encoder: {name}, embeddings of {student['embedding_width']} "
            f"numbers, RGB images of {size} x {size} pixels. It was distilled without labels and "
            "names no classes; two images are alike as the cosine of their embeddings is."
        )
    if is_dense(student):
        text = (
            f"{remark}A network that segments: {name}, {student['num_classes']} classes of pixels "
            f"(`labels.txt`), RGB images of any size; trained on crops of {size} x {size} pixels."
        )
    interrupted = student.get("interrupted")
    if interrupted:
        text += (
            f" **Its training was interrupted after epoch {interrupted['after_epoch']}**; weights "
            f"and numbers are of epoch {interrupted['weights_of_epoch']}."
        )
    return text


def _use(facts: Mapping[str, Any]) -> str:
    gives_embeddings = embeds(facts["student"])
    options = "--embed FILE.npz [--int8]" if gives_embeddings else "[--int8] [--csv FILE]"
    if is_dense(facts["student"]):
        options = "--masks DIR --overlays DIR [--int8] [--csv FILE]"
    prepared = "" if is_dense(facts["student"]) else ", resized and cropped"
    return (
        "    pip install numpy pillow onnxruntime\n"
        f"    python BUNDLE/predict.py photo.jpg [folder ...] {options}\n\n"
        f"Photos may have any size and mode; they are set upright{prepared} "
        "(`--strict` refuses those that would have to be changed; `--help` has more).\n\n"
        "`preprocess.json` states exactly what the ONNX files take; `manifest.json` has the "
        "SHA-256 of every file, and `predict.py` refuses a bundle that does not match it.\n\n"
        "Without it, in the folder of the bundle:\n\n"
        f"```python\n{snippet(facts['preprocess'], embeds=gives_embeddings)}```"
    )


def _interfaces(facts: Mapping[str, Any]) -> str:
    """Inputs and outputs of each file, and the way from an image to them."""
    rows = ["| file | | name | type | shape | layout | values |", "|---|---|---|---|---|---|---|"]
    interfaces: Mapping[str, FileInterface] = facts["interfaces"]
    for file, interface in interfaces.items():
        for kind, values in (("takes", interface.inputs), ("gives", interface.outputs)):
            for value in values:
                shape = ", ".join(map(str, value.shape))
                cells = (f"`{file}`", kind, f"`{value.name}`", value.dtype, shape, value.layout)
                rows.append(f"| {' | '.join(cells)} | {value.values}{_range(value)} |")
    return f"{facts['preparation']}\n\n" + "\n".join(rows)


def _range(value: InputInterface | OutputInterface) -> str:
    if not isinstance(value, InputInterface):
        return ""
    ends = [
        f"{color} {low:.4g} to {high:.4g}"
        for color, (low, high) in zip(value.color, value.range, strict=True)
    ]
    return f"; {', '.join(ends)}"


def _accuracy(facts: Mapping[str, Any]) -> str:
    parity, int8 = facts["parity"], facts["int8"]
    rows = [
        "| network | top-1, % | same class as trained, % |",
        "|---|---:|---:|",
        f"| as trained (torch) | {parity['torch_top1_percent']:.2f} | |",
        f"| `student.onnx` | {parity['onnx_top1_percent']:.2f} | "
        f"{parity['top1_agreement_percent']:.2f} |",
    ]
    if int8 is not None:
        rows.append(
            f"| `student.int8.onnx` | {int8['onnx_top1_percent']:.2f} | "
            f"{int8['top1_agreement_percent']:.2f} |"
        )
    rows.append(f"\nTop-1 on the {parity['images']} images of the test split{_epoch(facts)}.")
    if int8 is not None:
        gate, accepted = int8["gate"], int8["gate"]["accepted"]
        rows.append(
            f"{_int8_opening(int8)} its drop of "
            f"{gate['top1_drop']:.2f} points (standard error {gate['drop_standard_error']:.2g}, "
            f"accepted {accepted['max_top1_drop']:g}), the same class in "
            f"{gate['agreement_percent']:.2f} % (accepted {accepted['min_agreement_percent']:g}) "
            f"and logits off by {gate['difference']:.2g} of the largest (accepted "
            f"{accepted['max_difference']:g}) {_within(gate)}, on the machine that made it "
            "and computed exactly."
        )
        rows += _remark(int8)
        rows += _int8_notes(int8)
    return "\n".join([*rows, *_search_and_refusal(facts)])


def _fidelity(facts: Mapping[str, Any]) -> str:
    """Of a network that gives embeddings: how near each file is, and what judged the student."""
    parity, int8 = facts["parity"], facts["int8"]
    rows = ["| file | mean cosine | lowest percent |", "|---|---:|---:|"]
    for name, row in (("student.onnx", parity), ("student.int8.onnx", int8)):
        if row is not None:
            rows.append(f"| `{name}` | {row['mean_cosine']:.4f} | {row['low_cosine']:.4f} |")
    rows.append(
        f"\nCosine of each image's embeddings by the file and by the trained network (torch), on "
        f"{parity['images']} images of the test split."
    )
    training = facts["training"]
    if training:
        rows.append(
            f"The student itself, on {training['test_images']} test images: "
            f"{task_for(labels=False).describe(training)} (weights of epoch "
            f"{training['selected_epoch']} of {training['epochs']}; of each image the 10 nearest "
            "neighbours by cosine)."
        )
    if int8 is not None:
        gate, accepted = int8["gate"], int8["gate"]["accepted"]
        rows.append(
            f"{_int8_opening(int8)} its mean cosine of "
            f"{gate['mean_cosine']:.4f} (accepted {accepted['min_mean_cosine']:g}) and lowest "
            f"percent of {gate['low_cosine']:.4f} (accepted {accepted['min_low_cosine']:g}) are "
            "within the limits, on the machine that made it and computed exactly."
        )
        if int8["full_range"]:
            rows.append(f"**int8: {FULL_RANGE}.**")
        if int8["flavour"] in FLAVOURS:
            rows.append(f"**int8: {FLAVOURS[int8['flavour']]}.**")
    if facts["int8_refused"]:
        rows.append(f"\n`student.int8.onnx` was left out: {facts['int8_refused']}.")
    return "\n".join(rows)


def _of_pixels(facts: Mapping[str, Any]) -> str:
    """Of a network that segments: mean IoU, and pixels with the trained network's class."""
    parity, int8 = facts["parity"], facts["int8"]
    rows = [
        "| network | mean IoU, % | pixels of the same class as trained, % |",
        "|---|---:|---:|",
        f"| as trained (torch) | {parity['torch_miou_percent']:.2f} | |",
    ]
    for name, row in (("student.onnx", parity), ("student.int8.onnx", int8)):
        if row is not None:
            rows.append(
                f"| `{name}` | {row['onnx_miou_percent']:.2f} | "
                f"{row['pixel_agreement_percent']:.2f} |"
            )
    rows.append(
        f"\nMean IoU on the {parity['images']} images of the test split{_epoch(facts)}, whole "
        f"images of their own size, from one confusion matrix over {parity['pixels']:,} pixels "
        "(void left out; a class that is neither there nor predicted does not count)."
    )
    if int8 is not None:
        gate, accepted = int8["gate"], int8["gate"]["accepted"]
        rows.append(
            f"{_int8_opening(int8)} its drop of "
            f"{gate['miou_drop']:.2f} points (standard error {gate['drop_standard_error']:.2g}, "
            f"accepted {accepted['max_miou_drop']:g}) and the same class in "
            f"{gate['agreement_percent']:.2f} % of the pixels (accepted "
            f"{accepted['min_agreement_percent']:g}) {_within(gate)}, on the machine that "
            f"made it and computed exactly; a logit is off by up to {gate['difference']:.2g} of "
            "the largest."
        )
        rows += _remark(int8)
        rows += _int8_notes(int8)
    return "\n".join([*rows, *_search_and_refusal(facts)])


def _epoch(facts: Mapping[str, Any]) -> str:
    training = facts["training"]
    if not training:
        return ""
    return f", weights of epoch {training['selected_epoch']} of {training['epochs']}"


def _int8_opening(int8: Mapping[str, Any]) -> str:
    gate = int8["gate"]
    return (
        f"int8: {int8['quantized_layers']} of {int8['layers']} layers, calibrated "
        f"({int8['calibration']}) on {int8['calibration_images']} training images; on "
        f"{gate['images']} images of the {gate['split']} split"
    )


def _within(gate: Mapping[str, Any]) -> str:
    return "are within the limits" if gate["remark"] is None else "were not refused"


def _remark(int8: Mapping[str, Any]) -> list[str]:
    """The change on the test split, and what the gate could not decide."""
    rows = [f"int8 on the test split: {int8['drop_words']}."]
    remark = int8["gate"]["remark"]
    return rows if remark is None else [*rows, f"**Undecided**: {remark}."]


def _search_and_refusal(facts: Mapping[str, Any]) -> list[str]:
    rows = [] if facts["int8_search"] is None else [_search(facts["int8_search"])]
    refused = facts["int8_refused"]
    return [*rows, f"\n`student.int8.onnx` was left out: {refused}."] if refused else rows


def _int8_notes(int8: Mapping[str, Any]) -> list[str]:
    notes = (
        f"**int8: {FULL_RANGE}.**"
        if int8["full_range"]
        else "int8 weights have 7 bits, so that no CPU's 8-bit products saturate."
    )
    flavour = FLAVOURS.get(int8["flavour"])
    return [notes, *([f"**int8: {flavour}.**"] if flavour else [])]


def _search(search: Mapping[str, Any]) -> str:
    """Trials of the search for int8 settings."""
    drop = next(key for key in _DROPS if key in search["trials"][0])
    rows = [
        f"\nint8 settings were searched, on {search['images']} images of the {search['split']} "
        "split:\n",
        f"| calibration | float layers | same class, % | {_DROPS[drop]} | largest difference | |",
        "|---|---|---:|---:|---:|---|",
    ]
    for i, trial in enumerate(search["trials"]):
        layers = ", ".join(map(str, trial["leave_out"])) or "none"
        note = "chosen" if i == search["chosen"] else ""
        note = note if trial["within_limits"] else f"{note} exceeds a limit".strip()
        rows.append(
            f"| {trial['calibration']} | {layers} | {trial['agreement_percent']:.2f} | "
            f"{trial[drop]:.2f} | {trial['difference']:.3f} | {note} |"
        )
    return "\n".join(rows)


def _speed(facts: Mapping[str, Any]) -> str:
    lines = ["| file | MB |", "|---|---:|"]
    lines += [f"| `{name}` | {size / 1e6:.3f} |" for name, size in facts["files"].items()]
    costs = facts["costs"]
    if costs is not None:
        lines.append(f"\n{costs['parameters']:,} parameters, {costs['macs']:,} MACs per image.")
    timing = facts["latency"]
    if timing is not None:
        sizes = sorted({s for row in timing["latency"].values() for s in row}, key=int)
        lines += ["", "| runtime | " + " | ".join(f"batch {s}, ms" for s in sizes) + " |"]
        lines.append("|---|" + "---:|" * len(sizes))
        for name, row in timing["latency"].items():
            cells = [f"{row[s]['median_ms']:.3f}" for s in sizes]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        protocol = ", ".join(f"{k} {v}" for k, v in timing["protocol"].items())
        machine = facts["machine"]
        lines.append(
            f"\nMedian of a call: {protocol}; {machine['processor'] or 'unknown processor'}, "
            f"{machine['cores']} cores, torch {machine['torch']}, onnxruntime "
            f"{machine['onnxruntime']}."
        )
    return "\n".join(lines)


def _origin(facts: Mapping[str, Any]) -> str:
    student = facts["student"]
    distillation = student["distillation"]
    arguments = {k: v for k, v in distillation["method"].items() if k != "name"}
    method = distillation["method"]["name"] + (f" {one_line(str(arguments))}" if arguments else "")
    weights = ", ".join(f"{k} {v:g}" for k, v in distillation["weights"].items())
    data = ", ".join(f"{k} {one_line(str(v))}" for k, v in facts["data"].items() if v is not None)
    if facts["data"]["name"] == OF_A_LOADER:
        data = f"{one_line(facts['data']['about'])}, from the DataLoader of a program"
    versions = ", ".join(f"{k} {v}" for k, v in student["versions"].items())
    seed = f", seed {facts['training']['seed']}" if facts["training"] else ""
    teachers = "".join(
        f"* Teacher: {one_line(str(row.get('model')))}{_teacher_accuracy(row)}\n"
        for row in facts["teachers"]
    )
    return (
        f"* Data: {data}\n{teachers}* Method: {method}, weights of the terms: {weights}{seed}\n"
        f"* Recipe fingerprint: {student['fingerprint']}\n* Versions: {versions}"
    )


def _teacher_accuracy(row: Mapping[str, Any]) -> str:
    named = {"top1_percent": "top-1", "miou_percent": "mean IoU"}
    known = [f", {row[key]:.2f} % {title}" for key, title in named.items() if key in row]
    return "".join(known)


def _limits(gives_embeddings: bool, dense: bool) -> str:
    own = (
        "What its embeddings are good for was not measured beyond the numbers above; "
        if gives_embeddings
        else f"It knows its classes alone: {'a pixel' if dense else 'an image'} of anything else "
        "still gets one of them. Accuracy was measured on the data above; "
    )
    if dense:
        own += "objects much larger or smaller than there, "
    calibrated = "" if gives_embeddings else "Probabilities are not calibrated. "
    return (
        f"{own}other cameras, crops and qualities were not tried. {calibrated}"
        "Latency holds for the machine named beside it. The "
        "licences of the training data and of the teacher, which may bind this model too, are not "
        "known here."
    )
