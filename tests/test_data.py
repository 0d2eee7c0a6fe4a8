"""Samples by number, batches by step, and the corpora under them."""

import io
import json
import tarfile

import cv2
import numpy as np
import pytest
import torch

from restore.corpus import Folder, Stream, digest, hold_out, open_corpus
from restore.data import CleanImages, batches, crop, numpy_rng, order, random_window, torch_generator
from restore.errors import RestoreError


def image_of(number, height=40, width=56):
    """An image that tells its number: every pixel of channel 0 is ``number``."""
    rng = np.random.default_rng(number)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[..., 0] = number
    return image


def png(image):
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve images, the fourth and the ninth of which are broken."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(12):
        data = png(image_of(number))
        (root / f"{number:02d}.png").write_bytes(data[:60] if number in (4, 9) else data)
    return root


class Numbers:
    """Samples that are their own number; some of them came after broken files."""

    def sample(self, k):
        return {"input": torch.full((3, 2, 2), float(k)), "target": torch.zeros(3, 2, 2), "task": k % 3,
                "skipped": f"{k}.png" if k % 5 == 0 else ""}


def firsts(loader, count):
    taken = [next(loader)["input"][:, 0, 0, 0].tolist() for _ in range(count)]
    loader.close()
    return taken


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_the_promised_samples(workers):
    assert firsts(batches(Numbers(), 2, 3, workers), 3) == [[6, 7], [8, 9], [10, 11]]
    assert firsts(batches(Numbers(), 2, 1, workers, rank=1, world=3), 2) == [[8, 9], [14, 15]]


def test_batches_stack_tensors_and_list_texts():
    batch = next(batches(Numbers(), 4, 1))
    assert batch["task"].tolist() == [1, 2, 0, 1] and batch["skipped"] == ["", "5.png", "", ""]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_sample_reaches_the_loop_as_it_is(workers):
    class Broken:
        def sample(self, k):
            raise RestoreError("photos: nothing can be read")
    with pytest.raises(RestoreError) as caught:
        next(batches(Broken(), 2, workers=workers))
    assert str(caught.value) == "photos: nothing can be read"


def test_order_visits_every_image_once_a_pass():
    seen = [order(3, k, 10) for k in range(30)]
    assert all(sorted(seen[i:i + 10]) == list(range(10)) for i in (0, 10, 20))
    assert seen[:10] != seen[10:20] and seen != [order(4, k, 10) for k in range(30)]
    assert [order(3, k, 10) for k in (25, 7)] == [seen[25], seen[7]]


def test_order_of_blocks_keeps_images_of_few_blocks_together():
    blocks = tuple(range(0, 400, 10))
    seen = [order(0, k, 395, blocks) for k in range(395)]
    assert sorted(seen) == list(range(395))
    assert len({index // 10 for index in seen[:80]}) == 8 and sorted(seen[:80]) != seen[:80]


def test_crop_and_turns_against_numpy():
    image = image_of(7, 20, 30)
    for k in range(40):
        window = random_window(20, 30, 8, numpy_rng(0, k))
        part = image[window.top:window.top + 8, window.left:window.left + 8]
        expected = np.rot90(part, window.turns)
        expected = expected[:, ::-1] if window.flip else expected
        got = crop(image, 8, window)
        assert got.dtype == torch.float32 and got.is_contiguous()
        assert np.array_equal(got.permute(1, 2, 0).numpy(), expected.astype(np.float32) / 255)
        on_device = crop(torch.from_numpy(image.transpose(2, 0, 1).copy()), 8, window)
        assert torch.equal(on_device, got)


def test_windows_reach_every_place_and_all_eight_turns():
    windows = [random_window(10, 9, 8, numpy_rng(1, k)) for k in range(600)]
    assert {w.top for w in windows} == {0, 1, 2} and {w.left for w in windows} == {0, 1}
    assert len({(w.turns, w.flip) for w in windows}) == 8


@pytest.mark.parametrize("height, width", [(1, 1), (3, 20), (20, 2), (5, 5), (7, 16)])
def test_images_smaller_than_the_crop_are_mirrored(height, width):
    image = image_of(1, height, width)
    window = random_window(height, width, 16, numpy_rng(0, 0))._replace(turns=0, flip=False)
    got = crop(image, 16, window)
    part = image[window.top:window.top + 16, window.left:window.left + 16]
    expected = np.pad(part, ((0, max(16 - height, 0)), (0, max(16 - width, 0)), (0, 0)), mode="reflect")[:16, :16]
    assert np.array_equal((got.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8), expected)
    assert torch.equal(crop(torch.from_numpy(image.transpose(2, 0, 1).copy()), 16, window), got)


def test_generators_of_neighbouring_samples_differ_and_repeat():
    draws = {torch.rand(1, generator=torch_generator(seed, k)).item() for seed in range(3) for k in range(50)}
    assert len(draws) == 150
    assert torch.equal(torch.rand(4, generator=torch_generator(2, 9)), torch.rand(4, generator=torch_generator(2, 9)))


def test_broken_files_are_replaced_alike_and_named(folder):
    images = CleanImages(Folder(folder), seed=0)
    fetched = [images.fetch(k) for k in range(24)]
    broken = [k for k in range(24) if order(0, k, 12) in (4, 9)]
    assert len(broken) == 4
    for k, (image, skipped) in enumerate(fetched):
        number = int(image[0, 0, 0])
        assert np.array_equal(image, image_of(number)) and number not in (4, 9)
        assert bool(skipped) == (k in broken) and (skipped or number == order(0, k, 12))
        assert all("04.png" in line or "09.png" in line for line in skipped)
    again = CleanImages(Folder(folder), seed=0, cache_mb=0)
    for k in reversed(range(24)):                                   # another order, no memory: the same images
        assert np.array_equal(again.fetch(k)[0], fetched[k][0])


def test_memory_of_decoded_images_is_bounded(folder):
    size = image_of(0).nbytes
    images = CleanImages(Folder(folder), seed=0, cache_mb=3.5 * size / 1e6)
    for k in range(12):
        images.fetch(k)
        assert len(images.kept) <= 3 and images.used == len(images.kept) * size
    assert len(images.kept) == 3


def test_nothing_readable_is_an_error_that_names_the_folder(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"not an image")
    with pytest.raises(RestoreError, match=str(tmp_path)):
        CleanImages(Folder(tmp_path), seed=0).fetch(0)


def test_empty_and_missing_sources(tmp_path):
    with pytest.raises(RestoreError, match="no images"):
        open_corpus(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    for missing in (tmp_path / "nowhere", "photos", "../photos", tmp_path / "notes.txt"):
        with pytest.raises(RestoreError, match="no such folder"):
            open_corpus(missing)


def write_tar(path, numbers, broken=()):
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            for suffix, data in ((".json", json.dumps({"number": number}).encode()), (".png", png(image_of(number)))):
                data = data[:50] if number in broken and suffix == ".png" else data
                member = tarfile.TarInfo(f"{number:04d}{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_parquet(path, numbers, struct=True, rows=2):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet
    cells = [{"bytes": png(image_of(n)), "path": f"{n}.png"} if struct else png(image_of(n)) for n in numbers]
    parquet.write_table(pyarrow.table({"image": cells, "key": list(numbers)}), path, row_group_size=rows)


def numbers_of(corpus):
    return [int(corpus.read(i)[0, 0, 0]) for i in range(corpus.count)]


def test_tar_shards(tmp_path):
    write_tar(tmp_path / "a-000.tar", range(5))
    write_tar(tmp_path / "a-001.tar", range(5, 8))
    corpus = open_corpus(tmp_path)
    assert type(corpus).__name__ == "Tar" and numbers_of(corpus) == list(range(8))
    assert np.array_equal(corpus.read(6), image_of(6))
    assert numbers_of(open_corpus(tmp_path / "a-001.tar")) == [5, 6, 7]


def test_of_an_export_only_the_split_is_read(tmp_path):
    for split, numbers in (("train", range(3)), ("val", range(3, 5))):
        for form in ("webdataset", "files"):
            (tmp_path / form / split).mkdir(parents=True)
        write_tar(tmp_path / "webdataset" / split / "00000.tar", numbers)
        (tmp_path / "files" / split / "x.png").write_bytes(png(image_of(7)))
    (tmp_path / "manifest.json").write_text("{}")
    assert numbers_of(open_corpus(tmp_path)) == numbers_of(open_corpus(tmp_path / "webdataset")) == [0, 1, 2]
    assert numbers_of(open_corpus(tmp_path, split="val")) == [3, 4]
    assert numbers_of(open_corpus(tmp_path / "files" / "train")) == [7]


def test_torn_tar_is_refused_by_name(tmp_path):
    write_tar(tmp_path / "a.tar", range(5))
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:3000])
    with pytest.raises(RestoreError, match=r"a\.tar"):
        open_corpus(tmp_path)


@pytest.mark.parametrize("struct", [True, False])
def test_parquet_shards(tmp_path, struct):
    write_parquet(tmp_path / "a.parquet", range(5), struct)
    write_parquet(tmp_path / "b.parquet", range(5, 8), struct)
    corpus = open_corpus(tmp_path)
    assert type(corpus).__name__ == "Parquet" and numbers_of(corpus) == list(range(8))
    assert corpus.blocks == (0, 2, 4, 5, 7)
    with pytest.raises(RestoreError, match="no column 'photo'; there are image, key"):
        open_corpus(tmp_path, column="photo")


@pytest.fixture(scope="module")
def dataset():
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    cells = [{"bytes": png(image_of(n)) if n != 3 else b"broken", "path": None} for n in range(8)]
    return datasets.Dataset.from_dict({"image": cells}).cast_column("image", datasets.Image())


def test_hugging_face_folder(tmp_path, dataset):
    dataset.save_to_disk(str(tmp_path / "set"))
    corpus = open_corpus(tmp_path / "set")
    assert corpus.count == 8 and [int(corpus.read(i)[0, 0, 0]) for i in (0, 5, 7)] == [0, 5, 7]
    with pytest.raises(RestoreError, match="row 3"):
        corpus.read(3)
    stream = open_corpus(tmp_path / "set", streaming=True)
    assert stream.count is None and [int(stream.read(i)[0, 0, 0]) for i in (0, 7, 8, 13)] == [0, 7, 0, 5]


def test_stream_gives_the_same_sample_wherever_one_starts(dataset):
    corpus = Stream("set", dataset.to_iterable_dataset(num_shards=3))
    images = CleanImages(corpus, seed=0)
    unbroken = [images.fetch(k) for k in range(20)]
    # the neighbour takes 3's place
    assert [int(image[0, 0, 0]) for image, _ in unbroken[:8]] == [0, 1, 2, 2, 4, 5, 6, 7]
    # once a pass; later passes have the shards in another order
    assert sum(bool(skipped) for _, skipped in unbroken[:16]) == 2
    later = CleanImages(Stream("set", dataset.to_iterable_dataset(num_shards=3)), seed=0)
    for k in (11, 13, 19, 5, 18):
        assert np.array_equal(later.fetch(k)[0], unbroken[k][0])


def test_stream_that_is_broken_at_its_start_and_one_without_the_column():
    rows = [{"image": b"no"}, {"image": png(image_of(5))}]
    assert int(CleanImages(Stream("rows", rows), seed=0).fetch(0)[0][0, 0, 0]) == 5
    with pytest.raises(RestoreError, match="no column 'image'; there are photo"):
        Stream("rows", [{"photo": b""}]).read(0)
    with pytest.raises(RestoreError, match="empty"):
        Stream("rows", []).read(0)
    with pytest.raises(RestoreError, match="in a row"):
        CleanImages(Stream("rows", [{"image": b"no"}]), seed=0).fetch(70)


@pytest.mark.parametrize("workers", [0, 2])
def test_stream_through_workers(dataset, workers):
    class FromStream:
        def __init__(self):
            self.images = CleanImages(Stream("set", dataset.to_iterable_dataset()), seed=0)

        def sample(self, k):
            return {"input": torch.full((3, 1, 1), float(self.images.fetch(k)[0][0, 0, 0]))}
    assert firsts(batches(FromStream(), 2, 1, workers), 4) == [[2, 2], [4, 5], [6, 7], [0, 1]]


def test_holding_out_the_last_images(tmp_path):
    write_parquet(tmp_path / "a.parquet", range(7), rows=2)
    corpus = open_corpus(tmp_path)
    shorter = hold_out(corpus, 2)
    assert (shorter.count, shorter.blocks, corpus.count) == (5, (0, 2, 4), 7)
    assert sorted(order(0, k, shorter.count, shorter.blocks) for k in range(5)) == list(range(5))


def test_digest_follows_the_files(tmp_path):
    (tmp_path / "a.png").write_bytes(png(image_of(1)))
    first = digest(Folder(tmp_path))
    assert first == digest(Folder(tmp_path)) and len(first) == 64
    (tmp_path / "b.png").write_bytes(png(image_of(2)))
    assert digest(Folder(tmp_path)) != first
