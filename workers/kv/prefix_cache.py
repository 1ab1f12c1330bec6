"""Which prefixes the pool's blocks hold: a tree of full blocks, found by digest, compared by content.

    digest -> PrefixNode(parent node, token ids) -> {block id: block}      several blocks may hold equal content

Called by `kv_cache.py`. A digest only proposes: a hit also needs the node's own tokens and the node matched before
it as its parent, so a collision costs a miss. A node's parent is always in the tree: when a prefix goes, so does
all that can only be reached through it. It knows nothing of free lists and users.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from workers.kv.block import Block
from workers.kv.event_log import EventLog


class PrefixNode:
    """The content of one full block after everything before it."""

    __slots__ = ("children", "copies", "digest", "extra", "parent", "tokens")

    def __init__(self, digest: bytes, parent: PrefixNode | None, tokens: bytes, extra: bytes) -> None:
        self.digest = digest
        self.parent = parent
        self.tokens = tokens  # packed int32
        self.extra = extra  # isolation; empty but at a chain's head
        self.copies: dict[int, Block] = {}  # by block id, the oldest first; never empty while in the tree
        self.children: set[PrefixNode] = set()

    @property
    def block(self) -> Block:
        return next(iter(self.copies.values()))

    def holds(self, parent: PrefixNode | None, tokens: bytes, extra: bytes) -> bool:
        return self.parent is parent and self.tokens == tokens and (parent is not None or self.extra == extra)


class PrefixCache:
    """`num_remembered` digests of evicted nodes are kept, to tell a miss by eviction from any other."""

    __slots__ = ("_evicted", "_nodes", "_num_remembered", "events")

    def __init__(self, num_remembered: int) -> None:
        self.events = EventLog()
        self._nodes: dict[bytes, PrefixNode] = {}  # parents before their children
        self._evicted: OrderedDict[bytes, None] = OrderedDict()  # the oldest first
        self._num_remembered = num_remembered

    def __len__(self) -> int:
        return len(self._nodes)

    def match(self, digests: Sequence[bytes], blocks: Iterable[bytes], extra: bytes) -> list[PrefixNode]:
        """The longest cached prefix of a chain, given as digests and as the blocks' packed tokens."""
        matched: list[PrefixNode] = []
        parent: PrefixNode | None = None
        for digest, tokens in zip(digests, blocks, strict=False):
            node = self._nodes.get(digest)
            if node is None or not node.holds(parent, tokens, extra):
                break
            matched.append(node)
            parent = node
        return matched

    def register(
        self, parent: PrefixNode | None, digest: bytes, tokens: bytes, extra: bytes, block: Block
    ) -> PrefixNode | None:
        """`block` has just filled. None: its digest belongs to other content, so it cannot be cached."""
        assert block.node is None, f"{block} is registered already"
        node = self._nodes.get(digest)
        if node is None:
            node = self._grow(parent, digest, tokens, extra)
        elif not node.holds(parent, tokens, extra):
            return None
        node.copies[block.id] = block
        block.node = node
        return node

    def forget(self, block: Block) -> list[Block]:
        """`block` is about to be reused. Answers with the blocks that cannot be reached any more."""
        node = block.node
        assert node is not None, f"{block} holds nothing to forget"
        block.node = None
        del node.copies[block.id]
        return [] if node.copies else self._drop(node)

    def find(self, digests: Iterable[bytes]) -> list[Block]:
        """A block for each digest that is cached: a hint for the queue's order, so nothing is compared."""
        nodes = [self._nodes.get(digest) for digest in digests]
        return [node.block for node in nodes if node is not None]

    def reach(self, digests: Sequence[bytes], guess: int, limit: int) -> int:
        """How many of the first `limit` digests of a chain are cached, by digest alone: a collision may add some.

        A right guess makes it two lookups, for a node's parent is always in the tree.
        """
        nodes, depth = self._nodes, min(guess, limit)
        while depth > 0 and digests[depth - 1] not in nodes:
            depth -= 1
        while depth < limit and digests[depth] in nodes:
            depth += 1
        return depth

    def was_evicted(self, digest: bytes) -> bool:
        return digest in self._evicted

    def snapshot(self) -> bytes:
        """Every digest, parents before their children, joined."""
        return b"".join(self._nodes)

    def clear(self) -> None:
        for node in self._nodes.values():
            for block in node.copies.values():
                block.node = None
        self._nodes.clear()
        self._evicted.clear()
        self.events.cleared()

    def _grow(self, parent: PrefixNode | None, digest: bytes, tokens: bytes, extra: bytes) -> PrefixNode:
        node = PrefixNode(digest, parent, tokens, b"" if parent else extra)
        if parent is not None:
            assert parent.copies, "the parent of a new prefix has left the tree"
            parent.children.add(node)
        self._nodes[digest] = node
        self._evicted.pop(digest, None)
        self.events.stored(digest, None if parent is None else parent.digest)
        return node

    def _drop(self, root: PrefixNode) -> list[Block]:
        """Take a node without copies out of the tree, with all below it."""
        if root.parent is not None:
            root.parent.children.discard(root)
        useless: list[Block] = []
        stack = [root]
        while stack:
            node = stack.pop()
            del self._nodes[node.digest]
            self._remember(node.digest)
            self.events.removed(node.digest)
            for block in node.copies.values():
                block.node = None
                useless.append(block)
            stack.extend(node.children)
        return useless

    def _remember(self, digest: bytes) -> None:
        self._evicted[digest] = None
        if len(self._evicted) > self._num_remembered:
            self._evicted.popitem(last=False)

    def check_integrity(self, blocks: Sequence[Block]) -> None:
        """`blocks`: the whole pool."""
        for digest, node in self._nodes.items():
            assert node.digest == digest, "a node stands under another's digest"
            assert node.copies, "a node without a block is in the tree"
            assert all(blocks[number].node is node for number in node.copies), "a copy holds another node"
            assert all(child.parent is node for child in node.children), "a child names another parent"
            assert all(self._nodes.get(child.digest) is child for child in node.children), "a lost child"
            if node.parent is not None:
                assert self._nodes.get(node.parent.digest) is node.parent, "a node's parent is gone"
                assert node in node.parent.children, "a parent does not know its child"
        for block in blocks:
            if block.node is not None:
                assert block.node.copies.get(block.id) is block, f"{block} is not among its node's copies"
                assert self._nodes.get(block.node.digest) is block.node, f"{block} holds a dropped node"
        assert len(self._evicted) <= self._num_remembered, "too many evicted digests are remembered"
        assert self._evicted.keys().isdisjoint(self._nodes), "a cached digest counts as evicted"
