"""A cached target is the one of the very view that is seen, whatever happened to the file."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.data import Batch
from compress.data.augment import AUGMENTATIONS
from compress.errors import UserError
from compress.taps import MapSpec, Taps, TapSpecs
from compress.teacher.cache import (
    CachedTeacher,
    OutputCache,
    expected_hit_share,
    obstacle,
    planning_note,
    row_bytes,
)
from tests.processes import start
from tests.waiting import wait_until

IMAGES, VIEWS, WIDTHS = 12, 9, {"logits": 5, "pooled": 3}
ROW = row_bytes(WIDTHS, torch.float32)


def opened(folder: Path, **changed: Any) -> OutputCache:
    given: dict[str, Any] = {"images": IMAGES, "views": VIEWS, "widths": WIDTHS}
    given |= {"identity": {"teacher": "abc"}, "dtype": torch.float32, "max_bytes": 10**6}
    given |= changed
    return OutputCache.open(folder, given.pop("identity"), **given)


def targets(index: Tensor, view_numbers: Tensor) -> dict[str, Tensor]:
    """Numbers that no two views share and that no rounding of a network disturbs."""
    place = (index * VIEWS + view_numbers + 1)[:, None].float()
    return {kind: place + torch.arange(width) / 1000 for kind, width in WIDTHS.items()}


class Network:
    """Reads its targets off images that name their view; counts what it is shown."""

    def __init__(self) -> None:
        self.shown: list[int] = []

    def __call__(self, images: Tensor) -> Taps:
        self.shown.append(len(images))
        outputs = targets(images[:, 0, 0, 0].long(), images[:, 1, 0, 0].long())
        return Taps(outputs)


def batch_of(index: Tensor, *view_numbers: Tensor) -> Batch:
    def image(number: Tensor) -> Tensor:
        return torch.stack([index, number, number], dim=1)[:, :, None, None].float()

    labels = torch.zeros_like(index)
    return Batch(
        tuple(map(image, view_numbers)),
        view_numbers,
        labels,
        index,
        0,
        0,
        view_numbers=view_numbers,
    )


def same(taps: Taps, expected: dict[str, Tensor]) -> bool:
    return all(torch.equal(taps.tensor(kind), value) for kind, value in expected.items())


def everything() -> tuple[Tensor, Tensor]:
    return torch.arange(IMAGES).repeat_interleave(VIEWS), torch.arange(VIEWS).repeat(IMAGES)


def test_every_view_of_every_image_gets_its_own_target(tmp_path: Path) -> None:
    network = Network()
    teacher = CachedTeacher(network, dict.fromkeys(range(2), opened(tmp_path)), list(WIDTHS))
    index, view_numbers = everything()
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        order = torch.randperm(len(index), generator=generator)
        for part in order.split(10):
            other = (view_numbers[part] + 4) % VIEWS
            batch = batch_of(index[part], view_numbers[part], other)
            assert same(teacher(batch, 0), targets(index[part], view_numbers[part]))
            assert same(teacher(batch, 1), targets(index[part], other))
    assert teacher.misses == sum(network.shown) == IMAGES * VIEWS
    assert teacher.hits == 9 * IMAGES * VIEWS


def test_a_real_network_is_not_run_twice_and_gives_the_same_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)).eval()
    index, view_numbers = torch.tensor([4, 1, 7]), torch.tensor([3, 8, 0])
    batch = replace(batch_of(index, view_numbers), images=(torch.randn(3, 3, 8, 8),))

    @torch.inference_mode()
    def live(images: Tensor) -> Taps:
        return Taps(logits=network(images))

    def fails(images: Tensor) -> Taps:
        raise AssertionError("the network was run")

    widths = {"logits": 5}
    first = CachedTeacher(live, {0: opened(tmp_path, widths=widths)}, ["logits"])(batch, 0)
    again = CachedTeacher(fails, {0: opened(tmp_path, widths=widths)}, ["logits"])(batch, 0)
    expected = live(batch.images[0]).tensor("logits")
    for taps in (first, again):
        assert taps.tensor("logits").dtype == torch.float32
        assert torch.equal(taps.tensor("logits"), expected)
        assert not taps.tensor("logits").is_inference()
        assert list(taps) == ["logits"]


def test_only_what_is_missing_is_shown_and_the_order_stays(tmp_path: Path) -> None:
    network = Network()
    teacher = CachedTeacher(network, {0: opened(tmp_path)}, ["logits"])
    index, view_numbers = torch.tensor([3, 9, 0, 5, 7]), torch.tensor([1, 1, 8, 0, 4])
    teacher(batch_of(index[[1, 3]], view_numbers[[1, 3]]), 0)
    taps = teacher(batch_of(index, view_numbers), 0)
    assert network.shown == [2, 3]
    assert torch.equal(taps.tensor("logits"), targets(index, view_numbers)["logits"])
    assert (teacher.hits, teacher.misses) == (2, 5)


def test_a_compiled_teacher_is_shown_the_whole_batch_that_mostly_misses(tmp_path: Path) -> None:
    index, view_numbers = torch.arange(10), torch.zeros(10, dtype=torch.long)
    batch = batch_of(index, view_numbers)
    for compiled_rows, stored, shown in (
        (10, 2, 10),
        (10, 3, 7),  # 70 % are fewer than pay
        (9, 2, 8),  # a batch that is not compiled for
        (None, 2, 8),
    ):
        network, cache = Network(), opened(tmp_path / f"{compiled_rows}-{stored}")
        marked = {k: v + 0.5 for k, v in targets(index[:stored], view_numbers[:stored]).items()}
        cache.write(index[:stored], view_numbers[:stored], view_numbers[:stored], marked)
        teacher = CachedTeacher(
            network, {0: cache}, list(WIDTHS), compiled_rows=lambda rows=compiled_rows: rows
        )
        expected = {
            k: torch.cat([marked[k], v[stored:]]) for k, v in targets(index, view_numbers).items()
        }
        for _ in range(2):
            assert same(teacher(batch, 0), expected), "what was stored is what counts"
        assert network.shown == [shown]


def test_a_batch_without_slots_goes_past_the_cache(tmp_path: Path) -> None:
    network = Network()
    teacher = CachedTeacher(network, {0: opened(tmp_path)}, ["logits"])
    batch = replace(batch_of(torch.tensor([1, 2]), torch.tensor([0, 0])), view_numbers=())
    for _ in range(2):
        teacher(batch, 0)
    assert network.shown == [2, 2]
    assert teacher.hits == teacher.misses == 0


def test_a_slot_that_stands_for_another_view_is_missed(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    index, view_numbers = everything()
    cache.write(index, view_numbers, view_numbers + 100, targets(index, view_numbers))
    assert cache.read(index, view_numbers, view_numbers + 100)[0].all()
    assert not cache.read(index, view_numbers, view_numbers + 101)[0].any()


def test_caches_are_apart_by_identity_and_shape(tmp_path: Path) -> None:
    index, view_numbers = everything()
    cache = opened(tmp_path)
    cache.write(index, view_numbers, view_numbers, targets(index, view_numbers))
    assert opened(tmp_path).read(index, view_numbers, view_numbers)[0].all()
    for other in (
        opened(tmp_path, identity={"teacher": "abd"}),
        opened(tmp_path, dtype=torch.float16),
        opened(tmp_path, views=VIEWS + 1),
    ):
        assert other.folder != cache.folder
        assert not other.read(index, view_numbers, view_numbers)[0].any()
    # Even the rows of one in the place of another's do not count.
    foreign = opened(tmp_path, identity={"teacher": "abe"})
    (foreign.folder / "rows.bin").write_bytes((cache.folder / "rows.bin").read_bytes())
    assert not foreign.read(index, view_numbers, view_numbers)[0].any()


def test_no_flipped_byte_goes_unseen(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    index, view_numbers = torch.tensor([2, 2, 2]), torch.tensor([3, 4, 5])
    path, start = cache.folder / "rows.bin", (2 * VIEWS + 4) * ROW
    for byte in range(ROW):
        cache.write(index, view_numbers, view_numbers, targets(index, view_numbers))
        with path.open("r+b") as file:
            file.seek(start + byte)
            old = file.read(1)[0]
            file.seek(start + byte)
            file.write(bytes([old ^ 0x10]))
        hit, outputs = cache.read(index, view_numbers, view_numbers)
        assert hit.tolist() == [True, False, True], byte
        assert not outputs["logits"][1].any()


def test_a_checksum_without_values_and_a_moved_row_are_missed(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    one = torch.tensor([6])
    cache.write(one, one, one, targets(one, one))
    path, start = cache.folder / "rows.bin", (6 * VIEWS + 6) * ROW
    content = path.read_bytes()
    row = content[start : start + ROW]
    with path.open("r+b") as file:
        file.seek(start - ROW)
        file.write(row)  # whole, but of the next view
        file.seek(start)
        file.write(bytes(ROW - 4) + row[-4:])
    for number in (one - 1, one):
        for view_id in (number, one, one * 0):
            assert not cache.read(one, number, view_id)[0].any()


def test_bounded_by_bytes(tmp_path: Path) -> None:
    small = opened(tmp_path, max_bytes=4 * VIEWS * ROW + 7)
    assert small.images == 4
    assert "first 4 of 12 images" in small.notes()[0]
    teacher = CachedTeacher(Network(), {0: small}, list(WIDTHS))
    index, view_numbers = everything()
    for _ in range(2):
        assert same(teacher(batch_of(index, view_numbers), 0), targets(index, view_numbers))
    assert teacher.hits == 4 * VIEWS
    path = small.folder / "rows.bin"
    assert path.stat().st_size == 4 * VIEWS * ROW
    whole = opened(tmp_path)  # what was stored under the smaller bound is still there
    assert whole.read(index, view_numbers, view_numbers)[0].sum() == 4 * VIEWS
    assert not whole.notes()
    opened(tmp_path, max_bytes=4 * VIEWS * ROW)
    assert path.stat().st_size == IMAGES * VIEWS * ROW
    with pytest.raises(UserError, match="holds no image"):
        opened(tmp_path, max_bytes=VIEWS * ROW - 1)


def test_takes_no_space_before_it_is_written(tmp_path: Path) -> None:
    cache = opened(tmp_path, images=50_000, views=162, widths={"logits": 100}, max_bytes=10**11)
    stat = (cache.folder / "rows.bin").stat()
    assert stat.st_size == 50_000 * 162 * 412
    assert stat.st_blocks * 512 < 10**5


def test_an_unknown_image_or_slot_is_an_error(tmp_path: Path) -> None:
    cache, one = opened(tmp_path), torch.tensor([1])
    for index, number in ((IMAGES, 0), (-1, 0), (0, VIEWS), (0, -1)):
        with pytest.raises(ValueError, match="outside"):
            cache.read(one * index, one * number, one)
    with pytest.raises(ValueError, match="numbers"):
        cache.write(one, one, one, {"logits": torch.ones(1, 4), "pooled": torch.ones(1, 3)})


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1, "identity": {"teacher": "x"}}'])
def test_a_damaged_description_is_refused_and_stays(tmp_path: Path, content: str) -> None:
    path = opened(tmp_path).folder / "cache.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"cache\.json"):
        opened(tmp_path)
    assert path.read_text() == content


def test_a_full_disk_ends_the_storing_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = opened(tmp_path)
    teacher = CachedTeacher(Network(), {0: cache}, list(WIDTHS))
    index, view_numbers = everything()
    teacher(batch_of(index[:5], view_numbers[:5]), 0)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    for _ in range(2):
        assert same(teacher(batch_of(index, view_numbers), 0), targets(index, view_numbers))
    assert capsys.readouterr().out.count("No space left on device") == 1
    assert teacher.hits == 10


def test_float16_gives_the_rounded_value_on_every_visit(tmp_path: Path) -> None:
    widths = {"logits": 4}
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) * 10
    logits[2, 1] = 1e5  # more than the type holds: kept as it is, each time
    index = torch.arange(6)

    def live(images: Tensor) -> Taps:
        return Taps(logits=logits[images[:, 0, 0, 0].long()])

    cache = opened(tmp_path, widths=widths, dtype=torch.float16)
    teacher = CachedTeacher(live, {0: cache}, ["logits"])
    first, again = (teacher(batch_of(index, index), 0).tensor("logits") for _ in range(2))
    expected = logits.half().float()
    expected[2] = logits[2]
    assert first is not None and again is not None
    assert first.dtype == torch.float32
    assert torch.equal(first, expected) and torch.equal(again, expected)
    assert (teacher.hits, teacher.misses) == (5, 7)
    error = (logits - expected).abs()
    share = error.amax(dim=1) / logits.abs().amax(dim=1)
    assert teacher.rounding == pytest.approx((float(error.max()), float(share.max())))
    assert "float16 changed outputs by at most" in teacher.notes()[-1]
    assert "5 of 12" in teacher.notes()[0]


def test_bfloat16_outputs_keep_their_bits(tmp_path: Path) -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    cache = opened(tmp_path, widths={"logits": 5}, dtype=torch.bfloat16)
    index = torch.arange(4)

    def live(images: Tensor) -> Taps:
        return Taps(logits=logits)

    teacher = CachedTeacher(live, {0: cache}, ["logits"], torch.bfloat16)
    for _ in range(2):
        found = teacher(batch_of(index, index), 0).tensor("logits")
        assert found is not None
        assert found.dtype == torch.bfloat16 and torch.equal(found, logits)
    assert teacher.rounding == (0, 0)


def _rows_of_either(cache: OutputCache, factors: tuple[int, ...]) -> int:
    """Every hit is one process's whole row; returns how many there are."""
    index, view_numbers = everything()
    hit, outputs = cache.read(index, view_numbers, view_numbers)
    expected = [{k: v * f for k, v in targets(index, view_numbers).items()} for f in factors]
    whole = torch.stack(
        [torch.cat([e[k] == outputs[k] for k in WIDTHS], dim=1).all(dim=1) for e in expected]
    )
    assert whole.any(dim=0)[hit].all()
    return int(hit.sum())


def test_two_writers_of_the_same_rows_and_a_kill_leave_no_wrong_row(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.teacher.test_cache import *\n"
        "folder = Path(sys.argv[1]); cache = opened(folder); index, slots = everything()\n"
        "for factor in range(1, 10**6):\n"
        "    found = {k: v * (factor % 7 + 1) for k, v in targets(index, slots).items()}\n"
        "    cache.write(index, slots, slots, found)\n"
        "    (folder / 'begun').touch()"
    )
    cache, (index, view_numbers) = opened(tmp_path), everything()
    own = {kind: value * 9 for kind, value in targets(index, view_numbers).items()}
    with start(["-c", code, str(tmp_path)], tmp_path / "output.txt") as child:
        begun = tmp_path / "begun"
        wait_until(lambda: begun.exists() or not child.process.is_alive(), "the other process")
        for _ in range(200):
            cache.write(index, view_numbers, view_numbers, own)
            _rows_of_either(cache, (*range(1, 8), 9))
        assert child.process.is_alive()
        child.signal(signal.SIGKILL)
    # Where two writes are not kept apart by the file system, rows are lost, never mixed.
    again = opened(tmp_path)
    assert _rows_of_either(again, (*range(1, 8), 9)) > 0
    again.write(index, view_numbers, view_numbers, own)
    assert _rows_of_either(again, (9,)) == IMAGES * VIEWS


def test_expected_hit_shares() -> None:
    assert expected_hit_share(240, 162) == pytest.approx(0.478, abs=5e-4)
    assert expected_hit_share(1, 162) == pytest.approx(0)
    assert expected_hit_share(10, 1) == pytest.approx(0.9)
    assert expected_hit_share(10, 1, earlier=1) == 1
    assert expected_hit_share(240, 2**61) == pytest.approx(0, abs=1e-9)
    draws = torch.randint(9, (4000, 20), generator=torch.Generator().manual_seed(0))
    known = [len(set(row[:8])) for row in draws.tolist()]
    ends = [len(set(row)) for row in draws.tolist()]
    shares = [1 - (end - start) / 12 for start, end in zip(known, ends, strict=True)]
    assert expected_hit_share(12, 9, earlier=8) == pytest.approx(sum(shares) / 4000, abs=5e-3)


def test_planning_says_bytes_and_shares() -> None:
    arguments = (50_000, 162, {"logits": 100}, torch.float32)
    note = planning_note(*arguments, 10**10, 240)
    assert "up to 3.34 GB" in note and "kept" not in note
    assert "47.8 %" in note and "100.0 % with the same data.seed" in note
    bounded = planning_note(*arguments, 10**9, 240)
    assert "14,982 images (1.00 GB) are kept" in bounded and "14.3 %" in bounded


def test_obstacles_are_said_in_words() -> None:
    maps = (MapSpec("a", 64, 32, 32, 1), MapSpec("b", 128, 16, 16, 2))
    specs = TapSpecs(maps, maps, maps[1], 256, "fc", 100)
    crops = AUGMENTATIONS["crop_flip"].views
    assert obstacle(["logits", "pooled"], specs, ["crop_flip"] * 2, 50_000, crops) is None
    assert obstacle(["logits"], specs, ["resized_crop"], 50_000, 8) is None
    said = obstacle(["logits", "stages"], specs, ["crop_flip"], 50_000, crops)
    assert said is not None and "'stages', 3,185 GB for" in said
    assert "'last_map', 1,062 GB" in str(
        obstacle(["last_map"], specs, ["crop_flip"], 50_000, crops)
    )
    assert "'layer1.0'; only" in str(obstacle(["layer1.0"], specs, ["crop_flip"], 50_000, crops))
    endless = AUGMENTATIONS["resized_crop"].views
    said = obstacle(["logits"], specs, ["resized_crop"], 50_000, endless)
    assert said is not None and "data.views" in said
    assert "98,304 numbers" in str(obstacle(["stages"], specs, ["resized_crop"], 50_000, endless))
    assert obstacle(["logits"], specs, ["crop_flip", "none"], 50_000, crops) is None
    assert "no teacher" in str(obstacle([], specs, ["crop_flip"], 50_000, crops))
