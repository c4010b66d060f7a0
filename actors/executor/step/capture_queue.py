"""The CUDA graphs that are still to be captured, in order.

Graphs of the forward pass and of common kinds of sampling come first: there is memory for all of them. Those of rare
kinds follow, as they were met. In both, what a step has met and missed last comes first; before all what was missed
again.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence

from .graph_keys import ForwardKey, SamplingKey, with_prompts
from .sampling_kind import SamplingKind


class CaptureQueue:
    """The keys of graphs that do not exist yet."""

    def __init__(self, forwards: Sequence[ForwardKey], decode_sizes: Sequence[int], most_rare: int) -> None:
        """``forwards`` have all sizes, the largest first; ``decode_sizes`` rise; ``most_rare`` bounds ``rare``."""
        self.largest = forwards[0]
        self.most_rare = most_rare
        self.common: OrderedDict[ForwardKey | SamplingKey, None] = OrderedDict.fromkeys(forwards)
        """All sizes, greedy and plainly sampled: the largest first, so that the others fit into its memory."""
        for rows in reversed(decode_sizes):
            for greedy in (True, False):
                self.common[SamplingKey(rows, SamplingKind(greedy=greedy))] = None
        self.rare: OrderedDict[SamplingKey, None] = OrderedDict()
        """The graphs of rare kinds, which are captured when no common one is missing."""
        self.missed: Counter[ForwardKey | SamplingKey] = Counter()
        """The number of steps that needed each common graph, and ran without."""
        self.closed = False
        """There is no memory for further graphs: none is wanted any more."""

    def __bool__(self) -> bool:
        return bool(self.common or self.rare)

    def want(self, key: ForwardKey | SamplingKey) -> None:
        """A step has met ``key``, which has no graph: capture it first of its sort."""
        if self.closed:
            return
        if isinstance(key, ForwardKey) or not key.rare:
            self.common[key] = None
            self.common.move_to_end(key, last=False)
            self.missed[key] += 1
            return
        self.rare[key] = None
        self.rare.move_to_end(key, last=False)
        if len(self.rare) > self.most_rare:
            self.rare.popitem()  # it comes again when it is met again

    @property
    def repeats(self) -> bool:
        """Whether some missing graph was needed by two steps."""
        return any(times > 1 for times in self.missed.values())

    @property
    def next(self) -> ForwardKey | SamplingKey | None:
        """The key that is captured next. The first graph with prompts is the largest, in whose memory the others fit;
        what is met again and again is so small that it need not wait for that."""
        if not self.common:
            return next(iter(self.rare), None)
        for key in self.common:
            if self.missed[key] > 1:
                return key
        first = next(iter(self.common))
        return self.largest if with_prompts(first) and self.largest in self.common else first

    def take(self) -> tuple[ForwardKey | SamplingKey, bool] | None:
        """Remove the key that is next; returns it, and whether a step is known to have run it,
        which is not counted of rare kinds."""
        key = self.next
        if key is None:
            return None
        if key in self.common:
            del self.common[key]
        elif isinstance(key, SamplingKey):
            del self.rare[key]
        return key, self.missed.pop(key, 0) > 0

    def close(self) -> None:
        """Want nothing any more."""
        self.closed = True
        self.common.clear()
        self.missed.clear()
        self.rare.clear()
