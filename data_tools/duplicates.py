"""Near duplicates among millions of 256-bit hashes: each image belongs to the best image within the given distance.

**Groups.** The images come in order of preference. Going down that order, an image joins the first group whose *best* image
is within the distance, or else starts a group of its own. So every member resembles the image that is kept in its stead,
and chains (a resembles b, b resembles c ...) cannot swallow a set, as they do with connected components.

**Search.** Exact, by multi-index hashing (Norouzi, Punjani and Fleet, arXiv 1307.2982): if two hashes differ in at most
r bits, then one of their 16 substrings of 16 bits differs in at most r // 16. Every substring is looked up, with all
its variations by so many bits, in a table of that substring's values; what is found there is compared in full. At
distance 31 that is 1 pair in 240, so the work still grows with the square of n, with a small constant.

**Order of work.** The first half of the images is grouped; the second half is compared with the *best images* of the first
half alone; what is left of it is grouped. Half by half, down to blocks that are compared whole. Ten thousand copies of
one image therefore meet one entry, not each other, and memory stays at a few arrays of n rows and one chunk of pairs.
"""

import itertools

import numpy as np

BITS = 256
_WORDS = 16                                # substrings of 16 bits
_BLOCK = 1024                              # images that are compared with each other directly
_CHUNK = 1 << 19                           # pairs compared at once


def group(hashes, distance=31, turned=False, progress=None):
    """Group hashes that are given in order of preference, the best image first.

    Args:
        hashes: (n, 32) uint8.
        distance: largest number of differing bits, 0..47.
        turned: compare with the seven mirrored and turned versions too (:func:`turned_hashes`).
        progress: called with the number of images that have been grouped since the last call.

    Returns:
        best (n,) int64: the row of the best image of the group, its own row for a best image or one that has no duplicate.
        differing (n,) int16: bits by which it differs from that image.
        version (n,) int8: which of the versions did, 0 as is.
    """
    if not 0 <= distance <= 47:
        raise ValueError(f"distance: expected 0..47, got {distance}")
    hashes = np.ascontiguousarray(hashes, np.uint8).reshape(-1, BITS // 8)
    search = _Search(hashes, distance, 8 if turned else 1, progress or (lambda count: None))
    search.solve(np.arange(len(hashes)))
    return search.best, search.differing, search.version


def brute_force(hashes, distance=31, turned=False):
    """What :func:`group` returns, by comparing everything with everything: for checks."""
    hashes = np.ascontiguousarray(hashes, np.uint8).reshape(-1, BITS // 8)
    versions = [turned_hashes(hashes, v) for v in range(8 if turned else 1)]
    best = np.arange(len(hashes))
    differing, version = np.zeros(len(hashes), np.int16), np.zeros(len(hashes), np.int8)
    leaders = []
    for row in range(len(hashes)):
        counts = np.stack([np.bitwise_count(v[row] ^ hashes[leaders]).sum(1, dtype=int) for v in versions])
        near = np.flatnonzero((counts <= distance).any(0))
        if len(near):
            v = int((counts[:, near[0]] <= distance).argmax())
            best[row], differing[row], version[row] = leaders[near[0]], counts[v, near[0]], v
        else:
            leaders.append(row)
    return best, differing, version


def turned_hashes(hashes, version):
    """The PDQ hashes that the images would have if mirrored or turned, from the hashes alone.

    ``version`` 0..7: as is, mirrored, upside down, turned by 180 degrees, and the transposes of these. Bit 16 i + j tells
    whether frequency (i + 1, j + 1) is above the median of all; mirroring changes the sign of the odd horizontal ones
    and hardly the median, so that those bits are inverted, but for a few next to the median.
    """
    if version == 0:
        return hashes
    odd = np.arange(16) % 2 == 0           # frequencies 1, 3, 5 ...
    flip = np.zeros((16, 16), bool)
    if version & 1:
        flip ^= odd[None, :]
    if version & 2:
        flip ^= odd[:, None]
    turned = hashes ^ np.packbits(flip.ravel())
    if version & 4:
        out = np.empty_like(turned)
        for start in range(0, len(turned), 1 << 16):
            bits = np.unpackbits(turned[start:start + (1 << 16)], axis=1).reshape(-1, 16, 16)
            out[start:start + (1 << 16)] = np.packbits(bits.transpose(0, 2, 1).reshape(len(bits), BITS), axis=1)
        return out
    return turned


def _shuffle():
    """Bits of one substring come from all over the hash: neighbouring frequencies are related, and substrings whose bits
    agree by habit make long lists."""
    return (np.arange(BITS) * 77) % BITS   # 77 is odd, so this is a permutation


class _Search:
    def __init__(self, hashes, distance, versions, progress):
        self.distance, self.progress = distance, progress
        count = len(hashes)
        self.best = np.arange(count)
        self.differing, self.version = np.zeros(count, np.int16), np.zeros(count, np.int8)
        # version v is an inversion of some bits of the hash (v < 4) or of its transpose: two arrays serve all eight
        self.bases = [self._shuffled(hashes)] + ([self._shuffled(turned_hashes(hashes, 4))] if versions > 4 else [])
        zero = np.zeros((1, BITS // 8), np.uint8)
        self.flips = [self._shuffled(turned_hashes(zero, v)) for v in range(versions)]
        radius = distance // _WORDS
        self.masks = np.array([sum(1 << b for b in bits) for size in range(radius + 1)
                               for bits in itertools.combinations(range(16), size)], np.uint16)

    def _version(self, rows, v):
        """(k, 4) uint64: version ``v`` of the hashes of ``rows``."""
        return self.bases[v >> 2][rows] ^ self.flips[v]

    @staticmethod
    def _shuffled(hashes):
        """(n, 4) uint64, bits reordered."""
        out = np.empty_like(hashes)
        for start in range(0, len(hashes), 1 << 16):
            bits = np.unpackbits(hashes[start:start + (1 << 16)], axis=1)
            out[start:start + (1 << 16)] = np.packbits(bits[:, _shuffle()], axis=1)
        return out.view(np.uint64)

    def solve(self, rows):
        """Group ``rows`` (ascending) among themselves; none of them is near a best image before them."""
        if len(rows) <= _BLOCK:
            self._block(rows)
            self.progress(len(rows))
            return
        half = len(rows) // 2
        first, second = rows[:half], rows[half:]
        self.solve(first)
        leaders = first[self.best[first] == first]
        found = np.full(len(second), np.iinfo(np.int64).max)
        self._look_up(second, leaders, found)
        near = found != np.iinfo(np.int64).max
        # leader, version and distance travel in one number, so that the smallest is the first leader's first version
        self.best[second[near]] = found[near] >> 16
        self.version[second[near]] = found[near] >> 12 & 15
        self.differing[second[near]] = found[near] & 4095
        self.progress(int(near.sum()))
        self.solve(second[~near])

    def _block(self, rows):
        """Compare up to _BLOCK images with each other."""
        count = len(rows)
        plain = self.bases[0][rows]
        near = np.zeros((count, count), bool)
        for v in range(len(self.flips)):
            near |= _distances(self._version(rows, v)[:, None], plain[None]) <= self.distance
        alone = np.ones(count, bool)
        for column in np.flatnonzero(np.tril(near, -1).any(0)):         # best images first
            if not alone[column]:
                continue
            members = np.flatnonzero(near[column + 1:, column] & alone[column + 1:]) + column + 1
            alone[members] = False
            self.best[rows[members]] = rows[column]
            for member in members:
                counts = [int(_distances(self._version(rows[member:member + 1], v)[0], plain[column]))
                          for v in range(len(self.flips))]
                version = next(v for v, d in enumerate(counts) if d <= self.distance)
                self.version[rows[member]], self.differing[rows[member]] = version, counts[version]

    def _look_up(self, asking, leaders, found):
        """For each row that asks the first leader within the distance: ``found`` is lowered to its code."""
        table = self.bases[0][leaders]
        for word in range(_WORDS):
            far = 2 if word < 8 else 0     # the half without this substring rejects nearly all at once
            keys = table.view(np.uint16)[:, word]
            order = np.argsort(keys, kind="stable").astype(np.int32)
            bounds = np.zeros((1 << 16) + 1, np.int32)
            np.cumsum(np.bincount(keys, minlength=1 << 16), out=bounds[1:])
            listed = [np.ascontiguousarray(table[order, far + k]) for k in (0, 1)]
            for v in range(len(self.flips)):
                queries = self._version(asking, v)
                asked = queries.view(np.uint16)[:, word]
                by_key = np.argsort(asked, kind="stable")
                asked = asked[by_key]      # ordered, so that what is compared lies side by side in memory
                halves = [np.ascontiguousarray(queries[by_key, far + k]) for k in (0, 1)]
                for mask in self.masks:
                    starts = bounds[asked ^ mask]
                    counts = bounds[(asked ^ mask).astype(np.int32) + 1] - starts
                    for left, right in _pairs(starts, counts):
                        differing = np.bitwise_count(halves[0][left] ^ listed[0][right])
                        differing += np.bitwise_count(halves[1][left] ^ listed[1][right])
                        near = np.flatnonzero(differing <= self.distance)
                        if len(near):
                            left, right = by_key[left[near]], order[right[near]]
                            full = _distances(queries[left], table[right])
                            near = full <= self.distance
                            np.minimum.at(found, left[near], leaders[right[near]] << 16 | v << 12 | full[near])


def _pairs(starts, counts):
    """Yield index arrays (i, j) of at most about _CHUNK pairs: every i with each of starts[i] ... + counts[i] - 1."""
    ends = np.cumsum(counts, dtype=np.int64)
    low = 0
    while low < len(counts):
        before = ends[low - 1] if low else 0
        high = max(low + 1, int(np.searchsorted(ends, before + _CHUNK, side="right")))
        here = counts[low:high]
        total = int(ends[high - 1] - before)
        if total:
            right = np.arange(total, dtype=np.int32)
            right += np.repeat((starts[low:high] - (ends[low:high] - before - here)).astype(np.int32), here)
            yield np.repeat(np.arange(low, high, dtype=np.int32), here), right
        low = high


def _distances(a, b):
    """Differing bits of (..., 4) uint64 arrays."""
    counts = np.bitwise_count(a[..., 0] ^ b[..., 0]).astype(np.int64)
    for word in range(1, 4):
        counts += np.bitwise_count(a[..., word] ^ b[..., word])
    return counts
