"""The CUDA graphs that are still to be captured, in order.

Graphs of the forward pass and of common kinds of sampling come first, as there is memory for all of them. Graphs of
rare kinds follow. In both groups the graph that a step has missed last is the first; but before all others comes a
graph that two steps have missed.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence

from .graph_keys import ForwardKey, SamplingKey, with_prompts
from .sampling_kind import SamplingKind


class CaptureQueue:
    """The keys of graphs that do not exist yet."""

    def __init__(
        self, forward_keys: Sequence[ForwardKey], decode_sizes: Sequence[int], most_rare: int
    ) -> None:
        """``forward_keys`` are those of all sizes, the largest first; ``decode_sizes`` are in ascending order;
        ``most_rare`` is the most that ``rare`` may hold."""
        self.largest = forward_keys[0]
        self.most_rare = most_rare
        self.common: OrderedDict[ForwardKey | SamplingKey, None] = OrderedDict.fromkeys(forward_keys)
        """The keys of common graphs: all sizes, and both greedy sampling and sampling with a temperature alone. The
        largest size is the first, so that the others fit into its memory."""
        for rows in reversed(decode_sizes):
            for greedy in (True, False):
                self.common[SamplingKey(rows, SamplingKind(greedy=greedy))] = None
        self.rare: OrderedDict[SamplingKey, None] = OrderedDict()
        """The graphs of rare kinds, which are captured when no common one is missing."""
        self.missed: Counter[ForwardKey | SamplingKey] = Counter()
        """The number of steps that needed each common graph, and ran without."""
        self.closed = False
        """Whether capturing has ended because there is no memory for further graphs."""

    def __bool__(self) -> bool:
        return bool(self.common or self.rare)

    def want(self, key: ForwardKey | SamplingKey) -> None:
        """A step has missed the graph of ``key``: make it the next of its group."""
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
            self.rare.popitem()  # a step that misses it adds it again

    @property
    def missed_twice(self) -> bool:
        """Whether some missing graph was needed by two steps."""
        return any(times > 1 for times in self.missed.values())

    @property
    def next(self) -> ForwardKey | SamplingKey | None:
        """The key of the next graph. The largest graph with prompts is captured before the others with prompts, which
        fit into its memory; but a graph that two steps have missed does not wait for it, as it is small."""
        if not self.common:
            return next(iter(self.rare), None)
        for key in self.common:
            if self.missed[key] > 1:
                return key
        first = next(iter(self.common))
        return self.largest if with_prompts(first) and self.largest in self.common else first

    def take(self) -> tuple[ForwardKey | SamplingKey, bool] | None:
        """Remove the next key; returns it, and whether a step is known to have missed it, which is not recorded for
        rare kinds."""
        key = self.next
        if key is None:
            return None
        if key in self.common:
            del self.common[key]
        elif isinstance(key, SamplingKey):
            del self.rare[key]
        return key, self.missed.pop(key, 0) > 0

    def close(self) -> None:
        """End capturing."""
        self.closed = True
        self.common.clear()
        self.missed.clear()
        self.rare.clear()
